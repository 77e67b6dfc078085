"""The model that ships with the package: found by its name, as good as its card says, in block FP8."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.loader.repository import open_repository
from bombus.loader.shipped import SHIPPED
from bombus.models.model import flat

NAME = "bombus/tiny-shakespeare-fp8"
FOLDER = Path(bombus.__file__).parent / "shipped" / "tiny-shakespeare-fp8"
KEPT = "FP8 and bf16 as stored, computed in float32"
CONTEXT, WINDOWS = 256, 16


@pytest.fixture(scope="module")
def card() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def losses(card: str) -> dict[str, float]:
    """What the card says of every way to load the model."""
    return {name: float(loss) for name, loss in re.findall(r"^\| (\D.+?) \| (\d\.\d{4}) \| [+-]", card, re.MULTILINE)}


@pytest.fixture(scope="module")
def text(data: Path) -> str:
    return (data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kept() -> bombus.LoadedModel:
    """Its types kept, computed in float32."""
    return bombus.load_model(NAME, preserve_source_types=True, policy=bombus.create_policy(compute="f32"))


def test_every_function_that_takes_a_repository_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(SHIPPED) == [NAME]
    loaded = bombus.load_model(NAME)
    assert loaded.report.where == NAME
    assert loaded.spec == bombus.load_spec(NAME)
    assert (loaded.spec.vocab_size, loaded.spec.num_heads, loaded.spec.num_kv_heads) == (2000, 4, 2)
    assert loaded.spec.tie_word_embeddings
    assert bombus.load_plan(NAME).plan.model.formats == loaded.model.formats
    assert loaded.generation_config == bombus.load_generation_config(NAME)
    assert bombus.load_tokenizer(NAME).vocab_size == 2000


def test_a_local_folder_of_that_path_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As before a repository on the hub."""
    monkeypatch.chdir(tmp_path)
    assert open_repository(NAME).folder == FOLDER
    (tmp_path / NAME).mkdir(parents=True)
    assert open_repository(NAME).folder == Path(NAME)


@pytest.mark.parametrize("name", ["bombus/tiny-shakespear", "bombus/x"])
def test_a_name_that_nothing_ships_under_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(bombus.HubError) as caught:
        bombus.load_model(name)
    assert str(caught.value) == (
        f"{name}: repository: does not ship with Bombus, and names that begin like it are not looked up on the hub "
        "(expected bombus/tiny-shakespeare-fp8)"
    )


def test_paths_that_begin_like_its_name_are_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bombus").mkdir()
    (tmp_path / "bombus" / "file").touch()
    with pytest.raises(bombus.HubError, match=r"^bombus/file: repository: is a file\. Give its folder, bombus$"):
        open_repository("bombus/file")
    for path in ("bombus/runs/last", Path(NAME)):
        with pytest.raises(bombus.HubError, match="there is no such folder, and it is not the form of a hub id"):
            open_repository(path)


def test_it_has_no_revisions() -> None:
    with pytest.raises(bombus.HubError) as caught:
        bombus.load_spec(NAME, revision="main")
    expected = f"{NAME}: revision: has no meaning for a model that ships with Bombus. Leave it out"
    assert str(caught.value) == expected


def test_it_has_no_subfolders() -> None:
    with pytest.raises(
        bombus.CheckpointError, match=r"^bombus/tiny-shakespeare-fp8: file config\.json: is not there in"
    ):
        bombus.load_spec(NAME, subfolder="fp8")


def test_an_installation_without_its_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, NAME, "shipped/none")
    with pytest.raises(bombus.HubError) as caught:
        open_repository(NAME)
    assert str(caught.value) == (
        f"{NAME}: repository: its files are not where they belong, at {FOLDER.with_name('none')}. "
        "Install Bombus again, as an unpacked package"
    )


def test_its_kernels_are_fp8_in_several_tiles_and_partial_ones(kept: bombus.LoadedModel) -> None:
    params = flat(kept.params)
    kernels = {path: leaf for path, leaf in params.items() if path.endswith(".kernel")}
    assert len(kernels) == 7 * kept.spec.num_blocks
    partial = 0
    for path, codes in kernels.items():
        scales = params[path.replace(".kernel", ".scale_inv")]
        assert (codes.dtype, scales.dtype) == (jnp.float8_e4m3fn, jnp.float32)
        assert scales.shape == tuple(-(-size // 128) for size in codes.shape)
        assert scales.size >= 2
        assert np.unique(scales).size == scales.size
        partial += any(size % 128 for size in codes.shape)
        # Every tile uses the whole range of the format.
        largest = np.abs(np.asarray(codes, np.float32))[:128, :128].max()
        assert largest == 448, path
    assert partial == len(kernels)
    rest = {path: leaf.dtype for path, leaf in params.items() if not path.endswith((".kernel", ".scale_inv"))}
    assert set(rest.values()) == {jnp.dtype(jnp.bfloat16)}
    assert kept.report.plan.model.spec.max_positions in (256, 512, 1024)


def test_its_folder_is_whole_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sorted(sizes) == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert sum(sizes.values()) <= 4_000_000


def test_its_card_says_what_it_is(card: str, kept: bombus.LoadedModel, losses: dict[str, float]) -> None:
    assert card.startswith("---\nlicense: apache-2.0\n")
    for heading in ("Model", "Training", "Loss on the held-out text", "A sample", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card
    codes = [leaf for path, leaf in flat(kept.params).items() if not path.endswith(".scale_inv")]
    assert f"| parameters | {sum(leaf.size for leaf in codes):,} |" in card
    assert f"| positions | {kept.spec.max_positions} |" in card
    assert "| steps | 1,400 of 8 x 256 tokens |" in card
    assert "| tokens seen | 2,867,200 |" in card
    assert re.search(r"^\| time \| \d+ minutes on \d+ CPU cores \|$", card, re.MULTILINE)
    full, *others = losses.values()
    assert len(losses) == 4
    assert full <= 1.70
    assert losses[KEPT] == others[0] <= 1.01 * full
    assert max(others) <= 1.01 * full


def test_its_card_says_what_it_read(card: str, text: str) -> None:
    assert "| held out | the last tenth, 111,540 characters |" in card
    assert f"tinyshakespeare.txt, {len(text):,} bytes" in card


def test_its_claimed_positions_work(card: str, kept: bombus.LoadedModel) -> None:
    found = re.findall(r"^\| \d+ to (\d+) \| (\d\.\d{4}) \|$", card, re.MULTILINE)
    contexts = {int(context): float(loss) for context, loss in found}
    assert set(contexts) == {256, 512, 1024}
    assert contexts[kept.spec.max_positions] <= 1.01 * contexts[256]


def losses_of(loaded: bombus.LoadedModel, ids_BT: np.ndarray) -> np.ndarray:
    """The nats of the second half of the tokens of every window, (B, T/2)."""
    logits = jax.jit(loaded.model.apply)(loaded.params, ids_BT[:, :-1]).logits.astype(jnp.float32)
    targets = ids_BT[:, 1:, None]
    nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets, -1)[..., 0]
    return np.asarray(nats)[:, CONTEXT // 2 :]


def test_its_loss_on_held_out_text_is_the_card_s(text: str, kept: bombus.LoadedModel, losses: dict[str, float]) -> None:
    """Windows over all of the held-out tenth, too few to give the card's number to the last digit."""
    held_out = text[len(text) * 9 // 10 :]
    tokenizer = bombus.load_tokenizer(NAME)
    ids = np.asarray(tokenizer.encode(held_out), np.int32)
    starts = np.linspace(0, len(ids) - CONTEXT - 1, WINDOWS).astype(int)
    windows = ids[starts[:, None] + np.arange(CONTEXT + 1)]
    counted = windows[:, CONTEXT // 2 + 1 :]
    characters = sum(len(tokenizer.decode(row.tolist())) for row in counted)
    found = losses_of(kept, windows)
    # Windows differ from each other; the mean of all of the text is within a few errors of the mean of these.
    per_window = found.sum(-1) / np.array([len(tokenizer.decode(row.tolist())) for row in counted])
    error = per_window.std(ddof=1) / WINDOWS**0.5
    assert error < 0.05 * losses[KEPT]
    assert abs(found.sum() / characters - losses[KEPT]) < 3 * error
    assert found.sum() / characters < 1.70
    wide = bombus.load_model(NAME, policy="f32")
    dequantized = losses_of(wide, windows)
    np.testing.assert_allclose(found.mean(), dequantized.mean(), rtol=1e-3)


def test_its_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = bombus.load_tokenizer(NAME)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(text) / len(ids) > 2.5
    strange = "naïve 漢字 🐝\r\n\ttabs  and <|endoftext|>?"
    assert tokenizer.decode(tokenizer.encode(strange), skip_special_tokens=False) == strange
    assert tokenizer.eos_token_id == 0


def test_its_chat_template_writes_a_play() -> None:
    tokenizer = bombus.load_tokenizer(NAME)
    messages = [
        {"role": "system", "content": "London. The palace.\n"},
        {"role": "user", "content": "Who comes here?"},
        {"role": "assistant", "content": " A friend. "},
        {"role": "user", "content": "What friend?"},
    ]
    play = (
        "London. The palace.\n\nFirst Citizen:\nWho comes here?\n\nKING RICHARD II:\nA friend.\n\n"
        "First Citizen:\nWhat friend?\n\n"
    )
    assert tokenizer.apply_chat_template(messages) == f"{play}KING RICHARD II:\n"
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=False) == play
    with pytest.raises(bombus.GenerationError, match="the roles of this play are system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "4"}])


def test_its_generation_config_ends_an_answer_with_its_speech() -> None:
    config = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert config["do_sample"] is True
    assert config["stop_strings"] == ["\n\n"]
    assert config["eos_token_id"] == 0


def test_what_it_writes_are_words_of_the_text(text: str) -> None:
    """Of words that it makes up there are few; of noise there would be little else."""
    loaded = bombus.load_model(NAME, preserve_source_types=True)
    settings = {"max_new_tokens": 64, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
    prompts = ["ROMEO:\n", "First Citizen:\n", "GLOUCESTER:\n", "JULIET:\n"]
    texts = bombus.generate(
        loaded, bombus.load_tokenizer(NAME), prompts, generation_config=bombus.GenerationConfig(), **settings
    )
    known = set(re.findall(r"[a-z']+", text.lower()))
    written = [word for answer in texts for word in re.findall(r"[a-z']+", answer.lower())]
    assert len(written) > 80
    assert sum(word in known for word in written) > 0.85 * len(written)
    assert len(set(written)) > 0.3 * len(written)
