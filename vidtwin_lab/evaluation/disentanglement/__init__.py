"""What a split into structure and dynamics is worth: the scorecard of an autoencoder."""
