"""Tokenizer: text to token ids and back, from a repository's tokenizer.json or tokenizer.model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import tokenizers
from tokenizers import AddedToken

from bombus.loader.json_file import read_json
from bombus.loader.repository import HubOptions, Repository, open_repository
from bombus.loader.template_limits import Limits
from bombus.loader.tiktoken_file import INSTEAD
from bombus.loader.tokenizer_model import read_tokenizer_model
from bombus.policies.errors import CheckpointError, GenerationError, HubError, Problem

_MAX_TEMPLATE = Limits.template


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the tokenizers library, with the special tokens and chat template of its repository.

    tool_template: in place of chat_template where a conversation has tools; few repositories have one.
    normalize: what a text goes through before the library sees it, for some files of sentencepiece.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    tool_template: str | None = None
    normalize: Callable[[str], str] | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def own_vocab_size(self) -> int:
        """One more than the largest token id, without the tokens that were added to the vocabulary."""
        return max(self.backend.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of tokens that `decode` leaves out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, if the repository names one."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        text = text if self.normalize is None else self.normalize(text)
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt of a conversation, [{"role": "user", "content": ...}, ...], by the repository's template.

        Other keyword arguments (`tools`, Qwen3's `enable_thinking`) reach the template. It runs in a sandbox, see
        render_chat_template. Raises GenerationError when there is no template or when it fails.
        """
        # Here and not above: Jinja takes a while to import, and texts need none of it.
        from bombus.loader.chat_template import render_chat_template

        template = self.tool_template if variables.get("tools") and self.tool_template else self.chat_template
        if template is None:
            raise GenerationError(
                Problem(
                    subject="chat template",
                    message="is not in this repository",
                    remedy="pass the prompt as text, or use an instruction-tuned model",
                )
            )
        given = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        # None as in transformers: templates ask whether there are any, not whether the name is defined.
        defaults = {"tools": None, "documents": None}
        return render_chat_template(template, {**defaults, **self.special_tokens, **given, **variables})

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The token ids of a conversation's prompt, see apply_chat_template.

        Without the tokens that `encode` puts around a text: a template writes those that the model wants by itself.
        The text of a special token within a message becomes that token, as in transformers.
        """
        text = self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Nothing. Raises GenerationError when a tokenizer has entries that a model's embedding has no row for.

    An embedding may have more rows. Tokens that were added to the vocabulary may go past its end (Gemma 3's, of the
    text-only models, has one for images): a text gets one only where its name is spelled out, and generation refuses
    such a prompt.
    """
    if tokenizer.own_vocab_size <= vocab_size:
        return
    entries = tokenizer.backend.get_vocab(with_added_tokens=False)
    past = sorted((number, token) for token, number in entries.items() if number >= vocab_size)
    problem = Problem(
        subject="tokenizer",
        message=f"is not the model's: of its tokens {len(past)} have no row in the embedding, first {past[0][1]!r}",
        expected=f"ids below {vocab_size}",
        found=f"up to {past[-1][0]}",
        remedy="load the tokenizer from the model's own repository",
    )
    raise GenerationError(problem)


def load_tokenizer(repo: str | PathLike[str], **hub: Unpack[HubOptions]) -> Tokenizer:
    """The Tokenizer of a repository, from tokenizer.json or else tokenizer.model (sentencepiece or tiktoken).

    Raises CheckpointError when it has neither, or one that is not valid.
    """
    repository = open_repository(repo, **hub)
    json_path = repository.find("tokenizer.json")
    model_path = None if json_path is not None else repository.find("tokenizer.model")
    if json_path is None and model_path is None:
        raise _neither(repository)
    config_path = repository.find("tokenizer_config.json")
    config = {} if config_path is None else read_json(config_path, CheckpointError)
    special_tokens = _special_tokens(config)
    template, tool_template = _chat_template(repository, config)
    if model_path is not None:
        added = _added_tokens(repository, config, special_tokens)
        found = read_tokenizer_model(model_path, config=config, special_tokens=special_tokens, added=added)
        return Tokenizer(found.backend, found.special_tokens, template, tool_template, found.normalize)
    try:
        backend = tokenizers.Tokenizer.from_file(str(json_path))
    except Exception as error:  # the library raises plain Exception for every defect of the file
        problem = Problem(subject="file", message=f"is not a valid tokenizer: {error}", remedy="download it again")
        raise CheckpointError(problem, where=str(json_path)) from error
    return Tokenizer(backend, special_tokens, template, tool_template)


def _neither(repository: Repository) -> CheckpointError | HubError:
    if repository.offline:
        return HubError(
            Problem(
                subject="tokenizer",
                message="neither tokenizer.json nor tokenizer.model is in the local cache, and the network is "
                "switched off",
                remedy="unset HF_HUB_OFFLINE and local_files_only, or download the repository first",
            ),
            where=str(repository),
        )
    inside = f" in subfolder {repository.subfolder!r}" if repository.subfolder else ""
    problem = Problem(
        subject="tokenizer", message=f"neither tokenizer.json nor tokenizer.model is there{inside}", remedy=INSTEAD
    )
    return CheckpointError(problem, where=str(repository))


def _chat_template(repository: Repository, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(the template, another one for conversations with tools); a file of its own goes before tokenizer_config.json."""
    path = repository.find("chat_template.jinja")
    if path is not None:
        return _read_template(path), None
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {
            entry.get("name"): entry.get("template")
            for entry in found
            if isinstance(entry, Mapping) and isinstance(entry.get("template"), str)
        }
        return named.get("default"), named.get("tool_use")
    return (found if isinstance(found, str) else None), None


def _read_template(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(4 * _MAX_TEMPLATE + 4)
    if len(raw) > 4 * _MAX_TEMPLATE:  # bytes: no character has more than four
        problem = Problem(
            subject="file",
            message="is too long for a chat template, and was not read",
            expected=f"at most {_MAX_TEMPLATE} characters",
            remedy="download it again",
        )
        raise CheckpointError(problem, where=str(path))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = Problem(subject="file", message=f"is not UTF-8: {error}", remedy="download it again")
        raise CheckpointError(problem, where=str(path)) from error


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, Mapping):  # an AddedToken, written out
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _added_tokens(
    repository: Repository, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> dict[int, AddedToken]:
    """Tokens by id that tokenizer_config.json (added_tokens_decoder) and added_tokens.json add to a tokenizer.model."""
    path = repository.find("added_tokens.json")
    added: dict[Any, Any] = {}
    if path is not None:
        added = {
            number: {"content": token, "special": token in special_tokens.values()}
            for token, number in read_json(path, CheckpointError).items()
        }
    decoder = config.get("added_tokens_decoder")
    added |= decoder if isinstance(decoder, Mapping) else {}
    result = {}
    for number, token in added.items():
        content = token.get("content") if isinstance(token, Mapping) else None
        if not str(number).isdecimal() or not isinstance(content, str) or not content:
            problem = Problem(
                subject=f"added token {number!r}",
                message="must have an id and its text",
                found=repr(token)[:80],
            )
            raise CheckpointError(problem, where=str(repository))
        flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        result[int(number)] = AddedToken(content, **flags)
    return result
