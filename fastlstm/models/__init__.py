"""The video models, a classifier and a language model."""
