"""Tasks that text encoders are compared on: GLUE, SQuAD, and linear probes of frozen states.

config              what is asked
glue, squad         files, measures and submissions
rows, prepared      texts as rows of tokens, and tasks made of them
finetuning          a text encoder with a head
probes              linear probes of a frozen one, on captions' questions (caption_questions)
metrics, results    measures; what is kept of finished runs, and the report of them
"""
