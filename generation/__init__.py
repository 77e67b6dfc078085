"""Text from a model: settings, the compiled loop, streaming.

| step | files |
|---|---|
| what is asked for | generate, request, sizes |
| the compiled programs | loop, history, processors, sampling |
| running them | engine, compiling |
| what comes out | text, result |
"""

from bombus.generation.compiling import warmup
from bombus.generation.generate import TextStream, chat, generate, generate_tokens
from bombus.generation.history import History
from bombus.generation.processors import LogitsProcessor
from bombus.generation.result import Generated, Timings

__all__ = [
    "Generated",
    "History",
    "LogitsProcessor",
    "TextStream",
    "Timings",
    "chat",
    "generate",
    "generate_tokens",
    "warmup",
]
