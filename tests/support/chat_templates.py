"""Chat templates of the kinds that published models have, written for the tests, and conversations for them.

The templates (tests/goldens/chat_templates) use what those use: macros that call themselves, namespaces, loops with
break, JSON of tools, dates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_hive",
            "description": "Finds a hive <near> a place & says 'how far'.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Wo? 場所"},
                    "size": {"enum": ["small", "large"], "default": "small"},
                    "spots": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
                    "when": {"oneOf": [{"type": "integer", "description": "hours"}, {"type": "string"}]},
                    "kind": {"type": ["string", "null"], "nullable": True},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": {"type": "object"}}},
]
_CALL = {"type": "function", "id": "call56789", "function": {"name": "find_hive", "arguments": {"place": "Köln <3"}}}
_CALLS = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "call56789", "content": "2 km"}
_SYSTEM = {"role": "system", "content": " Be brief. \n"}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one": {"messages": [_user("Hi 🐝\n")]},
    "system": {"messages": [_SYSTEM, _user("Why is the sky blue?")]},
    "turns": {"messages": [_SYSTEM, _user("a"), _assistant("<think>\nhm\n</think>\n\nb"), _user("c")]},
    "end": {
        "messages": [_user("a"), _assistant("<think>x</think>\n\nb", reasoning_content="because\n")],
        "add_generation_prompt": False,
    },
    "tools": {"messages": [_SYSTEM, _user("Where is <a> hive?")], "tools": TOOLS},
    "calls": {"messages": [_user("Where?"), _CALLS, _RESULT, _assistant("There."), _user("And?")], "tools": TOOLS},
    "last call": {
        "messages": [_user("Where?"), _CALLS, _RESULT, _RESULT],
        "tools": TOOLS,
        "builtin_tools": ["find_hive"],
    },
    "not thinking": {"messages": [_user("Hi")], "enable_thinking": False, "thinking": False},
    "parts": {"messages": [_user("x") | {"content": [{"type": "text", "text": " a "}, {"type": "image"}]}]},
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def variables(conversation: str) -> dict[str, Any]:
    """What a template is rendered with; no date, which would be another one tomorrow."""
    return {
        "add_generation_prompt": True,
        "tools": None,
        "date": "3 May 2025",
        **SPECIAL,
        **CONVERSATIONS[conversation],
    }


def templates(data: Path | None = None) -> dict[str, str]:
    """Template by name; with a folder of data, Qwen3's own among them."""
    folder = Path(__file__).parents[1] / "goldens" / "chat_templates"
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    if data is not None:
        config = (data / "qwen2-tokenizer" / "qwen3_tokenizer_config.json").read_text(encoding="utf-8")
        found["qwen3"] = json.loads(config)["chat_template"]
    return found
