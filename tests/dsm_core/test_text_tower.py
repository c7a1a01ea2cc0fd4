"""CLIP text towers with small random weights in the real file formats, read without a network; nothing is unpickled."""

from __future__ import annotations

import json
import logging
import pickle
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsm_core.classes import ATLAS, describe_class
from dsm_core.config import ConfigError, TextConfig
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace, TextSpaceError

open_clip = pytest.importorskip("open_clip")

SIZES = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
BIOMED = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
WORDS = "a ct scan of the liver spleen tumor cyst kidney in this there is image an axial slice through medical patient"
PLACES = {"bert": BERT.rpartition("/")[2], "beside": "."}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Whatever asks the network fails the test at once, and nothing kept on this machine is found."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def write_folder(folder, sizes=SIZES, model=open_clip.CLIP):
    """A model as open_clip writes one: `open_clip_config.json` and `open_clip_model.safetensors`."""
    folder.mkdir(exist_ok=True)
    described = {"model_cfg": sizes, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    save_file(model(**sizes).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "clip")


@pytest.fixture
def small_name(tmp_path, monkeypatch):
    """`tiny-clip`, an architecture that open_clip knows by name as it knows ViT-B-32."""
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIGS", factory._MODEL_CONFIGS | {"tiny-clip": SIZES})
    return "tiny-clip"


def classes(*names):
    return [describe_class(name) for name in names]


def biomed_folder(folder, place):
    """BiomedCLIP in small: timm image tower, BERT text tower of the Hub, MLP projection, context 256."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    own = folder / place
    own.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split())]
    (own / "vocab.txt").write_text("\n".join(vocabulary))
    (own / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512})
    )
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=512, **small)
    (own / "config.json").write_text(json.dumps(bert.to_dict()))
    sizes = {
        "embed_dim": 8,
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "image_size": 160,
        },
        "text_cfg": {
            "hf_model_name": BERT,
            "hf_tokenizer_name": BERT,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    }

    def model(**settings):
        text = settings["text_cfg"] | {"hf_model_name": str(own), "hf_model_pretrained": False}
        return open_clip.CustomTextCLIP(**settings | {"text_cfg": text})

    return write_folder(folder, sizes, model)


def test_weights_from_a_folder(folder):
    config = TextConfig(weights=str(folder))
    space = build_text_space(classes("liver", "spleen"), config)
    assert space.encoder.startswith("open_clip local weights ")
    assert space.encoder.endswith(", 8 prompts")
    assert str(folder.parent) not in space.encoder
    assert space.width == 16
    at_site = TextSpace.from_bytes(space.to_bytes())
    assert at_site.encode(["kidney tumor", "renal cyst"]).shape == (2, 16)
    with pytest.raises(TextSpaceError, match="not at hand"):
        at_site.encode(["gallstone"])
    able = at_site.with_encoder(config)
    assert torch.allclose(able.encode(["gallstone"]), space.encode(["gallstone"]), atol=1e-5)
    with pytest.raises(TextSpaceError, match="use the same weights and prompts"):
        at_site.with_encoder(TextConfig(weights=str(folder), prompts=("this is not a {}",)))


def test_vector_of_a_class_is_the_mean_over_prompts_and_synonyms(folder):
    prompts = ("a CT of a {}", "the {}")
    space = build_text_space([ATLAS["kidney tumor"]], TextConfig(weights=str(folder), prompts=prompts))
    model = open_clip.CLIP(**SIZES).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    unit = torch.nn.functional.normalize

    def by_hand(words):
        phrases = [prompt.replace("{}", word) for prompt in prompts for word in words]
        with torch.no_grad():
            rows = model.encode_text(open_clip.tokenize(phrases)).reshape(len(prompts), len(words), -1)
        return unit(unit(unit(rows, dim=2).mean(0), dim=1).mean(0), dim=0)

    wanted = unit(by_hand(["kidney tumor", "renal cell carcinoma", "renal tumor"]) - space.mean, dim=0)
    assert torch.allclose(space.vectors[0], wanted, atol=1e-4)
    plain = build_text_space([ATLAS["kidney tumor"]], TextConfig(weights=str(folder), prompts=prompts, detail="name"))
    assert torch.allclose(plain.vectors[0], unit(by_hand(["kidney tumor"]) - plain.mean, dim=0), atol=1e-4)
    assert not torch.allclose(plain.vectors[0], wanted, atol=1e-3)


def test_weights_from_a_file_of_an_architecture_known_by_name(folder, small_name):
    weights = folder / "open_clip_model.safetensors"
    space = build_text_space(classes("liver"), TextConfig(model=small_name, weights=str(weights)))
    assert space.encoder.startswith("open_clip tiny-clip weights ")
    same = build_text_space(classes("liver"), TextConfig(weights=str(folder)))
    assert torch.allclose(space.vectors, same.vectors, atol=1e-6)


@pytest.mark.parametrize("place", list(PLACES))
def test_biomedclip_finds_its_text_tower_and_tokenizer_in_the_folder(tmp_path, place):
    folder = biomed_folder(tmp_path / "biomed", PLACES[place])
    space = build_text_space(classes("liver", "spleen"), TextConfig(weights=str(folder)))
    assert space.width == 8
    assert float(space.encode(["liver cyst"]) @ space.encode(["kidney"]).T) < 0.9999
    for lost in ("config.json", "vocab.txt"):
        kept = (folder / PLACES[place] / lost).rename(tmp_path / "kept")
        with pytest.raises(TextSpaceError, match=rf"{BERT} of this model is not at hand: found none of .*{lost}"):
            build_text_space(classes("liver"), TextConfig(weights=str(folder)))
        kept.rename(folder / PLACES[place] / lost)


def test_biomedclip_by_name_is_found_among_the_hubs_files_on_this_machine(tmp_path):
    parts = biomed_folder(tmp_path / "biomed", PLACES["bert"])
    for name, source in ((BIOMED, parts), (BERT, parts / PLACES["bert"])):
        kept = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs" / "main").write_text("a" * 40)
        (kept / "snapshots" / ("a" * 40)).mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file():
                file.rename(kept / "snapshots" / ("a" * 40) / file.name)
    space = build_text_space(classes("liver"), TextConfig(encoder="open_clip", model=f"hf-hub:{BIOMED}"))
    assert space.encoder == f"open_clip hf-hub:{BIOMED} {space.encoder.partition(BIOMED)[2].strip()}"
    assert space.recipe.model == f"hf-hub:{BIOMED}"


def test_model_that_is_only_at_the_hub_is_named_where_there_is_no_network():
    with pytest.raises(
        TextSpaceError, match=r"neither kept on this machine nor can it be fetched.*text\.weights=FOLDER"
    ):
        build_text_space(classes("liver"), TextConfig(encoder="open_clip", model=f"hf-hub:{BIOMED}"))
    with pytest.raises(TextSpaceError, match=r"'openai' of ViT-B-32 cannot be fetched here"):
        build_text_space(classes("liver"), TextConfig(weights="openai"))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was read",)


@pytest.mark.parametrize("ending", [".pt", ".bin", ".pth", ".ckpt"])
@pytest.mark.parametrize("where", ["file", "folder"])
def test_pickled_weights_are_refused_unread_with_the_way_to_convert_them(folder, small_name, ending, where):
    (folder / "open_clip_model.safetensors").unlink()
    path = folder / f"open_clip_pytorch_model{ending}"
    path.write_bytes(pickle.dumps(Bomb()))
    weights = path if where == "file" else folder
    with pytest.raises(TextSpaceError, match=rf"model{ending} is no safetensors file.*weights_only=True.*save_file"):
        build_text_space(classes("liver"), TextConfig(model=small_name, weights=str(weights)))


def shrink(sizes, **changes):
    return {
        **sizes,
        **{key: {**sizes[key], **value} if isinstance(value, dict) else value for key, value in changes.items()},
    }


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (shrink(SIZES, embed_dim=8), "text_projection"),
        (shrink(SIZES, text_cfg={"layers": 2}), "resblocks"),
        (shrink(SIZES, text_cfg={"width": 32}), "positional_embedding is \\(77, 16\\), wanted \\(77, 32\\)"),
        (shrink(SIZES, text_cfg={"context_length": 32}), "positional_embedding is \\(77, 16\\), wanted \\(32, 16\\)"),
    ],
)
def test_weights_of_another_architecture_are_named(folder, sizes, said):
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    with pytest.raises(TextSpaceError, match=rf"weights of another architecture.*{said}"):
        build_text_space(classes("liver"), TextConfig(weights=str(folder)))


def spoil(folder, how):
    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "two weights":
        weights.rename(folder / "a.safetensors")
        (folder / "b.safetensors").write_bytes(b"")
    elif how == "broken config":
        config.write_text('{"model_cfg": {"embed_dim": 8}}')
    elif how == "unknown tower":
        config.write_text(json.dumps({"model_cfg": shrink(SIZES, text_cfg={"no_such_size": 1})}))
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no floats":
        held = load_file(weights)
        save_file(held | {"text_projection": torch.full_like(held["text_projection"], torch.nan)}, weights)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no config", r"holds no open_clip_config\.json"),
        ("no weights", r"holds no weights; wanted open_clip_model\.safetensors"),
        ("two weights", r"several weights \(a\.safetensors, b\.safetensors\)"),
        ("broken config", r"no configuration of open_clip.*vision_cfg"),
        ("unknown tower", r"cannot build the architecture.*no_such_size"),
        ("cut weights", r"cannot be read as safetensors"),
        ("no floats", r"no direction of its own"),
    ],
)
def test_folder_that_cannot_be_used_says_why(folder, how, said):
    spoil(folder, how)
    with pytest.raises(TextSpaceError, match=said):
        build_text_space(classes("liver"), TextConfig(weights=str(folder)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoder": "open_clip"}, "found None"),
        ({"weights": "no-such-tag"}, "'no-such-tag'"),
        ({"weights": "absent.safetensors"}, "no such file"),
        ({"weights": "local-dir:absent"}, "no such folder"),
        ({"weights": __file__}, "no safetensors file"),
    ],
)
def test_weights_that_are_nowhere_are_named(settings, said):
    with pytest.raises(TextSpaceError, match=said):
        build_text_space(classes("liver"), TextConfig(**settings))


def test_file_of_an_unknown_architecture_is_named(folder):
    config = TextConfig(model="ViT-B-33", weights=str(folder / "open_clip_model.safetensors"))
    with pytest.raises(TextSpaceError, match=r"ViT-B-33 is no architecture.*such as ViT-B-32"):
        build_text_space(classes("liver"), config)


@pytest.mark.parametrize("prompts", [(), ("a CT",), ("{} and {}",)])
def test_prompt_without_one_place_for_the_phrase_is_refused(prompts):
    with pytest.raises(ConfigError, match=r"text\.prompts"):
        TextConfig(prompts=prompts)


def test_phrase_longer_than_the_context_is_cut_and_what_was_cut_is_said(folder, caplog):
    space = build_text_space(classes("liver"), TextConfig(weights=str(folder)))
    long = " ".join(["stone"] * 60 + ["duct"] * 60)
    assert space.left_out(long).split() == ["duct"] * len(space.left_out(long).split())
    read = long[: -len(space.left_out(long))].strip()
    assert 60 < len(read.split()) < 75  # 77 tokens less two, less those of the longest prompt
    with caplog.at_level(logging.WARNING):
        cut = space.encode([long])
    assert "left out 'duct" in caplog.text
    assert "77 tokens" in caplog.text
    assert torch.allclose(cut, space.encode([read]), atol=1e-6)
    assert not torch.allclose(cut, space.encode([" ".join(read.split()[:-1])]), atol=1e-6)
    with pytest.raises(TextSpaceError, match="not one word of"):
        space.encode(["antidisestablishmentarianism" * 30])


def test_context_of_a_hugging_face_tower_is_counted_in_its_own_tokens(tmp_path, caplog):
    folder = biomed_folder(tmp_path / "biomed", PLACES["bert"])
    space = build_text_space(classes("liver"), TextConfig(weights=str(folder), prompts=("a {}",)))
    phrase = " ".join(["patient"] * 253)
    assert space.left_out(phrase) == ""
    assert space.left_out(f"{phrase} image slice") == "image slice"
