"""Writes the goldens of tokenizers and chat templates, with the libraries that they are compared with.

Run from the repository's root, with the `parity` extra and the data of the tests:
    python tests/goldens/make_tokenizer_goldens.py ../shared/data
Two models are trained by sentencepiece on Shakespeare, and what they make of a few texts is kept beside them.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

import chat_templates  # noqa: E402
import tokenizer_files  # noqa: E402

from bombus.loader import tiktoken_file  # noqa: E402

TEXTS = [
    *("", " ", "a", "  To be,   or not ", "Why, then\n\n\tI'll go.\r\n", "\u2581a \u2581\u2581b", "aaaaaaaa"),
    *("<0x41> <sep>x<sep>", "Bombus terrestris, \u718a\u8702 \U0001f41d \U0001f469\u200d\U0001f52c", "1234567 3.14"),
    # What the rules below replace, whole, in parts, and with another accent after it.
    *("\uff21\u20ac\u00e9 e\u0301 e\u0308 \u3000\u0301\u00a0x \uff8a\uff9e \u1112\u1161\u11ab", "Don't WE'LL it's"),
    "\u017f\u212a\u2028\x85",  # which a pattern that ignores case may take for s and k
]
RANKS = 2000
# Full-width A, a euro sign, e with an accent, a hard space, an ideographic one, a voiced kana.
RULES = "FF21\t41\n20AC\t45 55 52\n65 301\tE9\nA0\t20\n3000\t20\nFF8A FF9E\t30D0\n"


def train(lines: list[str], **options: Any) -> bytes:
    """The file of a sentencepiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


def trained(data: Path) -> dict[str, bytes]:
    """A model of Llama's kind, and one of the other kind with all that a normalizer does."""
    text = (data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line][:4000]
    rules = HERE / "rules.tsv"
    rules.write_text(RULES)
    try:
        return {
            "bpe": train(
                lines,
                model_type="bpe",
                vocab_size=400,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                user_defined_symbols=["<sep>"],
            ),
            "unigram": train(lines, model_type="unigram", vocab_size=120, normalization_rule_tsv=str(rules)),
        }
    finally:
        rules.unlink()


def rendered(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """What transformers makes of a template: its text or its error."""
    messages = variables.pop("messages")
    try:
        return {"text": render_jinja_template([messages], chat_template=template, **variables)[0][0]}
    except Exception as error:
        return {"error": str(error)}


def main(data: Path) -> None:
    """Writes the files."""
    goldens: dict[str, Any] = {"texts": TEXTS}
    for name, raw in trained(data).items():
        (HERE / f"sentencepiece_{name}.model").write_bytes(raw)
        processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
        goldens[name] = [processor.encode(text) for text in TEXTS]
        goldens[f"{name} texts"] = [processor.decode(ids) for ids in goldens[name]]
    tokens = tokenizer_files.ranks_of(data / "qwen2-tokenizer" / "tokenizer.json", RANKS)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    # The special tokens are those of Meta's tokenizer.py, checked by their names in the tests.
    encoding = tiktoken.Encoding("llama3", pat_str=tiktoken_file.WORDS, mergeable_ranks=ranks, special_tokens={})
    goldens["tiktoken"] = [encoding.encode(text) for text in TEXTS]
    (HERE / "tokenizers.json").write_text(json.dumps(goldens, ensure_ascii=True, indent=0) + "\n")
    chats = {
        f"{name}, {conversation}": rendered(template, chat_templates.variables(conversation))
        for name, template in chat_templates.templates(data).items()
        for conversation in chat_templates.CONVERSATIONS
    }
    (HERE / "chat_templates.json").write_text(json.dumps(chats, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
