"""Text from a model: sampling, the compiled loop, streaming."""

from bombus.generation.generate import Generated, generate, generate_tokens

__all__ = ["Generated", "generate", "generate_tokens"]
