"""Language models: how small ones are trained, tried on tasks, and compared as text encoders."""
