"""Tokenizer: text to token ids and back, from a repository's tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Unpack

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from bombus.loader.hub import HubOptions, open_repository, read_json
from bombus.policies.errors import CheckpointError, GenerationError, Problem


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the tokenizers library, with the special tokens and chat template of its repository."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, if the repository names one."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def stream(self, prompt: Sequence[int], tokens: Iterator[int]) -> Iterator[str]:
        """The text that follows a prompt, piece by piece; characters that span tokens are never cut."""
        decoder = DecodeStream(list(prompt), skip_special_tokens=True)
        for token in tokens:
            piece = decoder.step(self.backend, token)
            if piece:
                yield piece

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt of a conversation, [{"role": "user", "content": ...}, ...], by the repository's template.

        Other keyword arguments (`tools`, Qwen3's `enable_thinking`) reach the template. It runs in a sandbox.
        Raises GenerationError when there is no template or when it fails.
        """
        if self.chat_template is None:
            raise GenerationError(
                Problem(
                    subject="chat template",
                    message="is not in this repository",
                    remedy="pass the prompt as text, or use an instruction-tuned model",
                )
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise_exception
        try:
            return environment.from_string(self.chat_template).render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
                **variables,
            )
        except TemplateError as error:
            problem = Problem(subject="chat template", message=f"failed: {error}")
            raise GenerationError(problem) from error


def load_tokenizer(repo: str | PathLike[str], **hub: Unpack[HubOptions]) -> Tokenizer:
    """The Tokenizer of a repository. Raises CheckpointError when it has no valid tokenizer.json."""
    repository = open_repository(repo, **hub)
    path = repository.require(
        "tokenizer.json", "save it with a fast tokenizer of transformers, which writes tokenizer.json"
    )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every defect of the file
        problem = Problem(subject="file", message=f"is not a valid tokenizer: {error}", remedy="download it again")
        raise CheckpointError(problem, where=str(path)) from error
    config_path = repository.find("tokenizer_config.json")
    config = {} if config_path is None else read_json(config_path, CheckpointError)
    template = config.get("chat_template")
    template_path = None if isinstance(template, str) else repository.find("chat_template.jinja")
    if template_path is not None:
        template = template_path.read_text(encoding="utf-8")
    return Tokenizer(backend, _special_tokens(config), template if isinstance(template, str) else None)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, Mapping):  # an AddedToken, written out
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
