"""Where does a CLIP text tower lie: its architecture, its weights as safetensors, its tokenizer? Nothing is unpickled.

A folder holds `open_clip_config.json`, the weights (`open_clip_model.safetensors`) and, for a Hugging Face text tower
such as BiomedCLIP's, `config.json` of that tower and the files of its tokenizer, there or in a sub-folder of its name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_core.hashed_words import TextSpaceError

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
_HUB, _LOCAL = "hf-hub:", "local-dir:"
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_FROM_HUB = ("*.json", "*.txt", "*.safetensors")
_CONVERT = (
    "a pickle can run code when it is read, so it is not read here; where you trust it, convert it once: "
    "python -c \"import torch, safetensors.torch as s; w = torch.load('IN', weights_only=True); "
    "s.save_file({k: v.clone() for k, v in w.get('state_dict', w).items()}, 'open_clip_model.safetensors')\""
)


@dataclass(frozen=True)
class TowerFiles:
    """A CLIP model on this machine.

    Attributes:
        architecture: open_clip's `model_cfg`; a Hugging Face text tower is named by its folder.
        weights: a safetensors file.
        tokenizer: folder of a Hugging Face tokenizer; None: CLIP's own, which open_clip brings.
        label: says which it is without a path of this machine.
    """

    architecture: dict[str, Any]
    weights: Path
    tokenizer: Path | None
    label: str


def find_tower(model: str, weights: str | None) -> TowerFiles:
    """The files of a model; only a model or a pretrained tag that is given by name may be fetched.

    Args:
        model: an architecture that open_clip knows, `hf-hub:OWNER/NAME`, or `local-dir:FOLDER`.
        weights: a folder, a safetensors file, or a pretrained tag of the architecture.

    Raises:
        TextSpaceError: nothing usable there, a pickled file, or a tower whose own files are missing.
    """
    folder = _folder_named(model, weights)
    if folder is not None:
        return _in_folder(folder, "local")
    if model.startswith(_HUB) and not weights:
        name = model.removeprefix(_HUB)
        return _in_folder(_from_hub(name, _FROM_HUB, (CONFIG, *WEIGHTS[:1])), model)
    path = _weights_file(model, weights)
    _refuse_pickle(path)
    architecture, tag = _known_architecture(model), _tag(model, weights)
    if "quick_gelu" in tag:  # the architecture of the name alone has another activation than OpenAI's weights
        architecture["quick_gelu"] = tag["quick_gelu"]
    label = f"{model} {weights}" if tag else f"{model} weights {_digest(path)}"
    return TowerFiles(architecture, path, _text_tower(architecture, path.parent), label)


def _folder_named(model: str, weights: str | None) -> Path | None:
    for name in (weights or "", model):
        folder = Path(name.removeprefix(_LOCAL))
        if name.startswith(_LOCAL) or (name and folder.is_dir()):
            if not folder.is_dir():
                raise TextSpaceError(f"{name}: no such folder; wanted one with {CONFIG} and {WEIGHTS[0]}")
            return folder
    return None


def _in_folder(folder: Path, name: str) -> TowerFiles:
    try:
        architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(architecture):
            raise KeyError("embed_dim, vision_cfg or text_cfg")
    except FileNotFoundError:
        raise TextSpaceError(
            f"the folder {folder} holds no {CONFIG}, which says which architecture the weights are of; put the one of "
            "the model there, or give a file of weights with text.model=NAME"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TextSpaceError(
            f"{folder / CONFIG} is no configuration of open_clip ({type(error).__name__}: {error})"
        ) from None
    found = [folder / each for each in WEIGHTS if (folder / each).is_file()] or sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(path for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            _refuse_pickle(pickled[0])
        raise TextSpaceError(f"the folder {folder} holds no weights; wanted {WEIGHTS[0]}")
    if len(found) > 1 and found[0].name not in WEIGHTS:
        names = ", ".join(path.name for path in found)
        raise TextSpaceError(f"the folder {folder} holds several weights ({names}); call the right one {WEIGHTS[0]}")
    label = f"{name} weights {_digest(found[0])}"
    return TowerFiles(architecture, found[0], _text_tower(architecture, folder), label)


def _text_tower(architecture: dict[str, Any], folder: Path) -> Path | None:
    """Let a Hugging Face text tower be built from files at hand; returns the folder of its tokenizer."""
    text = architecture["text_cfg"]
    if name := text.get("hf_model_name"):
        text["hf_model_name"] = f"{_holding(str(name), ('config.json',), folder, 'text tower')}"
        text["hf_model_pretrained"] = False
    name = text.get("hf_tokenizer_name")
    return _holding(str(name), _TOKENIZERS, folder, "tokenizer") if name else None


def _holding(name: str, wanted: tuple[str, ...], folder: Path, what: str) -> Path:
    """The folder that holds one of the wanted files: beside the weights, or among the Hub's on this machine."""
    own = name.rpartition("/")[2]
    for place in (Path(name), folder / own, folder):
        if any((place / file).is_file() for file in wanted):
            return place
    try:
        return _from_hub(name, _FROM_HUB[:2], wanted)
    except TextSpaceError:
        raise TextSpaceError(
            f"the {what} {name} of this model is not at hand: found none of {', '.join(wanted)} in {folder} or "
            f"{folder / own}; copy them there from {name}"
        ) from None


def _from_hub(name: str, patterns: tuple[str, ...], wanted: tuple[str, ...]) -> Path:
    """The files of a model of the Hugging Face Hub; fetched only where this machine holds none of the wanted."""
    from huggingface_hub import snapshot_download

    folder = None
    for is_local in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=is_local))
        except Exception as error:  # the Hub's client raises its own, requests' and the system's
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if any((folder / file).is_file() for file in wanted):
            return folder
    if folder is not None:
        return folder
    raise TextSpaceError(
        f"the model {name} is neither kept on this machine nor can it be fetched ({reason}); fetch its files on a "
        "machine that can, and give their folder as text.weights=FOLDER"
    )


def _tag(model: str, weights: str | None) -> dict[str, Any]:
    """What open_clip knows of a pretrained tag; empty where the weights are none."""
    import open_clip

    is_file = Path(weights or "").is_file()
    return {} if is_file or not weights else open_clip.get_pretrained_cfg(model, weights)


def _weights_file(model: str, weights: str | None) -> Path:
    import open_clip

    path = Path(weights or "")
    if weights and path.is_file():
        return path
    if weights and path.suffix in (".safetensors", *_PICKLED):
        raise TextSpaceError(f"text.weights={weights}: no such file")
    if not (tag := _tag(model, weights)):
        raise TextSpaceError(
            f"text.weights wants a pretrained tag of {model}, a safetensors file or a folder with {CONFIG}; "
            f"found {weights!r}"
        )
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # whatever the Hub's client or the network raises
        raise TextSpaceError(
            f"the weights {weights!r} of {model} cannot be fetched here ({type(error).__name__}: {error}); fetch them "
            "on a machine that can, and give the file as text.weights=FILE.safetensors"
        ) from error


def _known_architecture(model: str) -> dict[str, Any]:
    import open_clip

    architecture = open_clip.get_model_config(model) if not model.startswith((_HUB, _LOCAL)) else None
    if architecture is None:
        raise TextSpaceError(
            f"text.model={model} is no architecture that open_clip knows, which a file of weights wants; "
            f"name one, such as ViT-B-32, or give a folder with {CONFIG}"
        )
    return architecture


def _refuse_pickle(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise TextSpaceError(
            f"{path.name} is no safetensors file; {_CONVERT.replace('IN', path.name)}"
            if path.suffix in _PICKLED
            else f"{path.name} is no safetensors file; wanted one ending in .safetensors"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
