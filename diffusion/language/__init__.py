"""Readers of prompts: text encoders for the pipeline, and how small ones are trained."""

from diffusion.language.text_encoder import CachedTextEncoder, TextEncoder, TextEncoding

__all__ = ["CachedTextEncoder", "TextEncoder", "TextEncoding"]
