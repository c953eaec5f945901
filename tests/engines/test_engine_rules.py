"""`make engine-rules`: each rule of reading, on a small source tree of our own, and sources that mean harm."""

from __future__ import annotations

import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.engines import source_facts
from scripts.engine_rules import compressed, expanded, read, rendered
from scripts.engine_rules import tree as trees
from scripts.engine_rules.syntax import ABSENT, UNREADABLE, Library

MODELS = "vllm/model_executor/models"
LINEAR = """
class LinearBase(torch.nn.Module): ...
class QKVParallelLinear(LinearBase): ...
class RowParallelLinear(LinearBase): ...
"""
INTERFACES = """
class SupportsLoRA(Protocol):
    embedding_modules: ClassVar[dict[str, str]] = {}
    packed_modules_mapping: dict[str, list[str]] = {}
"""
REGISTRY = """
_TEXT = {
    "ToyForCausalLM": ("toy", "ToyForCausalLM"),
    "BareForCausalLM": ("toy", "BareForCausalLM"),
    "QuietForCausalLM": ("quiet", "QuietForCausalLM"),
    "FarForCausalLM": ("vllm.models.far", "FarForCausalLM"),
    "GoneForCausalLM": ("gone", "GoneForCausalLM"),
}
_EMBED = {
    **{k: (mod, arch) for k, (mod, arch) in _TEXT.items() if arch == "ToyForCausalLM"},
    "ToyModel": ("toy", "ToyForCausalLM"),
}
_MULTIMODAL = {
    "ToyVLForConditionalGeneration": ("toy_vl", "ToyVL"),
    "OpenVLForConditionalGeneration": ("toy_vl", "OpenVL"),
}
_VLLM_MODELS = {**_TEXT, **_EMBED, **_MULTIMODAL}
"""
TOY = """
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from .interfaces import SupportsLoRA
from .utils import WeightsMapper, make_layers

class ToyAttention(nn.Module):
    def __init__(self, kind):
        self.qkv_proj = QKVParallelLinear()
        linear_cls = RowParallelLinear if kind else QKVParallelLinear
        self.o_proj = linear_cls()
        self.norm = nn.LayerNorm()

class NotInside(nn.Module):
    def __init__(self):
        self.secret_proj = RowParallelLinear()

class ToyModel(nn.Module):
    def __init__(self, layer_type: type[NotInside] = ToyAttention):
        self.layers = make_layers(lambda prefix: layer_type(prefix))
        if isinstance(self.layers, NotInside):
            raise TypeError

class ToyForCausalLM(nn.Module, SupportsLoRA):
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_substr={"wte": "embed_tokens", "gone": None}) | WeightsMapper(
        orig_to_new_prefix={"transformer.": "model."}, orig_to_new_stacked={".q_proj": (".qkv_proj", "q")})
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    embedding_modules = {"embed_tokens": "input_embeddings"} | {"lm_head": "output_embeddings"}

    def __init__(self):
        self.model = ToyModel()

class BareForCausalLM(ToyForCausalLM):
    embedding_modules = {}
"""
FILES = {
    "vllm/__init__.py": "",
    "vllm/model_executor/layers/linear.py": LINEAR,
    f"{MODELS}/interfaces.py": INTERFACES,
    f"{MODELS}/registry.py": REGISTRY,
    f"{MODELS}/utils.py": """
class WeightsMapper: ...
def make_layers(make): return make
def init_vllm_registered_model(**how): return initialize_model(**how)
""",
    f"{MODELS}/toy.py": TOY,
    f"{MODELS}/quiet.py": "from torch import nn\nclass QuietForCausalLM(nn.Module): ...\n",
    f"{MODELS}/toy_vl.py": """
from .interfaces import SupportsLoRA
from .toy import ToyForCausalLM
from .utils import init_vllm_registered_model
class ToyVL(nn.Module, SupportsLoRA):
    embedding_modules = ToyForCausalLM.embedding_modules
    def __init__(self, config):
        self.language_model = init_vllm_registered_model(architectures=["BareForCausalLM"])
class OpenVL(nn.Module, SupportsLoRA):
    def __init__(self, config):
        self.language_model = init_vllm_registered_model(hf_config=config.text_config)
""",
    "vllm/models/far/__init__.py": """
if TYPE_CHECKING:
    from .amd.model import FarForCausalLM
def __getattr__(name):
    from .nvidia.model import FarForCausalLM
    return FarForCausalLM
""",
    "vllm/models/far/amd/model.py": "class FarForCausalLM(nn.Module): ...\n",
    "vllm/models/far/nvidia/model.py": "from vllm.model_executor.models.toy import ToyForCausalLM as Base\n"
                                       "class FarForCausalLM(Base): ...\n",
    "vllm/config/model.py": '_SUFFIX_TO_DEFAULTS: list = [("ForCausalLM", ("generate", "none")), '
                            '("ForSequenceClassification", ("pooling", "classify"))]\n',
    "vllm/config/lora.py": "MaxLoRARanks = Literal[1, 8, 16]\n",
    "vllm/lora/peft_helper.py": """
class PEFTHelper:
    r: int
    lora_alpha: int
    bias: str = field(default="none")
    target_modules: list[str] | str
    def _validate_features(self):
        error_msg = []
        if self.modules_to_save:
            unsupported = [m for m in self.modules_to_save if m not in ["classifier"]]
            if unsupported:
                error_msg.append(f"only classifier. Not: {unsupported}")
        if self.use_dora:
            error_msg.append("no DoRA")
        if not self._init_is_supported():
            error_msg.append(f"no init {self.init_lora_weights!r}")
        return error_msg
""",
}  # fmt: skip

SGLANG = {
    "models/toy.py": """
from sglang.srt.layers.linear import RowLinear
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
class ToyModel(nn.Module):
    def __init__(self):
        self.o_proj = RowLinear()
        self.embed_tokens = VocabParallelEmbedding()
class ToyForCausalLM(nn.Module):
    supported_lora_modules = ["o_proj"]
    def __init__(self):
        self.model = ToyModel()
class ToyToo(ToyForCausalLM): ...
EntryClass = [ToyForCausalLM, ToyToo]
""",
    "layers/linear.py": "class LinearBase(nn.Module): ...\nclass RowLinear(LinearBase): ...\n",
    "layers/vocab_parallel_embedding.py": "class VocabParallelEmbedding(nn.Module): ...\n",
    "lora/lora_config.py": """
class LoRAConfig:
    def __init__(self):
        self.r = self.hf_config["r"]
        self.lora_alpha = self.hf_config["lora_alpha"]
        self.use_dora = self.hf_config.get("use_dora", False)
""",
    "lora/lora_manager.py": """
class LoRAManager:
    def validate_new_adapter(self, lora_config, lora_ref):
        if lora_config.use_dora:
            raise ValueError(f"{lora_ref} no DoRA here")
""",
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def zipped(path: Path, files: dict[str, str], start: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(start + name, text)
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("toy"), FILES)


@pytest.fixture(scope="module")
def facts(toy: Path) -> dict[str, Any]:
    return read("vllm", str(toy))


# ------------------------------------------------------------------ each rule
def test_architectures_lead_to_classes_and_a_filtered_table_is_understood(facts: dict[str, Any]) -> None:
    assert facts["architectures"] == {
        "BareForCausalLM": "toy.BareForCausalLM", "FarForCausalLM": "models.far.FarForCausalLM",
        "GoneForCausalLM": "gone.GoneForCausalLM", "OpenVLForConditionalGeneration": "toy_vl.OpenVL",
        "QuietForCausalLM": "quiet.QuietForCausalLM", "ToyForCausalLM": "toy.ToyForCausalLM",
        "ToyModel": "toy.ToyForCausalLM", "ToyVLForConditionalGeneration": "toy_vl.ToyVL",
    }  # fmt: skip


def test_a_class_has_lora_by_inheritance_and_its_names_from_all_that_is_inside(facts: dict[str, Any]) -> None:
    assert facts["classes"]["toy.ToyForCausalLM"] == {
        "lora": True, "embedding": ["embed_tokens", "lm_head"], "linear": ["o_proj", "qkv_proj"],
        "packed": {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}, "renames": {"wte": "embed_tokens"},
    }  # fmt: skip
    assert facts["classes"]["toy.BareForCausalLM"]["embedding"] == []
    assert facts["classes"]["toy.BareForCausalLM"]["linear"] == ["o_proj", "qkv_proj"]
    assert facts["classes"]["quiet.QuietForCausalLM"] == {"lora": False}
    assert facts["classes"]["gone.GoneForCausalLM"] == {"lora": None}


def test_a_class_of_several_platforms_is_the_one_for_nvidia(facts: dict[str, Any]) -> None:
    row = facts["classes"]["models.far.FarForCausalLM"]
    assert row["defined"] == "vllm.models.far.nvidia.model.FarForCausalLM"
    assert (row["lora"], row["embedding"]) == (True, ["embed_tokens", "lm_head"])


def test_a_wrapper_takes_what_its_inner_model_takes_and_says_when_the_base_chooses_that(facts: dict[str, Any]) -> None:
    assert facts["classes"]["toy_vl.ToyVL"] == {
        "lora": True, "embedding": ["embed_tokens", "lm_head"], "linear": ["o_proj", "qkv_proj"],
        "packed": {"qkv_proj": ["q_proj", "k_proj", "v_proj"]},
    }  # fmt: skip
    assert facts["classes"]["toy_vl.OpenVL"] == {
        "lora": True,
        "embedding": [],
        "linear": [],
        "packed": {},
        "inner": True,
    }


def test_the_configuration_rules_are_read(facts: dict[str, Any]) -> None:
    assert facts["required_fields"] == ["lora_alpha", "r", "target_modules"]
    assert facts["ranks"] == [1, 8, 16]
    assert facts["whole_modules"] == ["classifier"]
    assert facts["suffixes"] == [["ForCausalLM", "none"], ["ForSequenceClassification", "classify"]]
    assert facts["refused_fields"] == {
        "init_lora_weights": "no init", "modules_to_save": "only classifier. Not:", "use_dora": "no DoRA",
    }  # fmt: skip


def test_sglang_registers_entry_classes_and_takes_three_fields(tmp_path: Path) -> None:
    folder = written(tmp_path, {f"sglang/srt/{name}": text for name, text in SGLANG.items()})
    facts = read("sglang", str(folder))
    assert facts["architectures"] == {"ToyForCausalLM": "toy.ToyForCausalLM", "ToyToo": "toy.ToyToo"}
    assert facts["classes"]["toy.ToyToo"] == {
        "lora": True, "embedding": ["embed_tokens"], "linear": ["o_proj"], "packed": {}, "listed": ["o_proj"],
    }  # fmt: skip
    assert facts["required_fields"] == ["lora_alpha", "r"]
    assert facts["refused_fields"] == {"use_dora": "no DoRA here"}


# ------------------------------------------------------------------ where the source comes from
class _Ranges(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges and counts the bytes."""

    data = b""
    sent = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.data[first : last + 1]
        type(self).sent += len(part)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A wheel whose compiled part is most of it, behind a URL."""
    wheel = zipped(tmp_path / "toy.whl", FILES)
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("vllm/_C.so", os.urandom(24 * 2**20))
    _Ranges.data, _Ranges.sent = wheel.read_bytes(), 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Ranges)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/toy.whl"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_wheel_a_source_distribution_and_a_folder_say_the_same(tmp_path: Path, facts: dict[str, Any]) -> None:
    wheel = zipped(tmp_path / "toy.whl", FILES)
    archive = tmp_path / "toy-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in FILES.items():
            info = tarfile.TarInfo(f"toy-1.0/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    assert read("vllm", str(wheel)) == facts
    assert read("vllm", str(archive)) == facts


def test_a_remote_wheel_is_read_in_parts(served: str, facts: dict[str, Any]) -> None:
    assert read("vllm", served) == facts
    assert 0 < _Ranges.sent < len(_Ranges.data) / 4


# ------------------------------------------------------------------ sources that mean harm
@pytest.mark.security
def test_nothing_of_a_source_is_imported_or_executed(tmp_path: Path, facts: dict[str, Any]) -> None:
    mark = tmp_path / "executed"
    bomb = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nraise SystemExit(3)\n"
    folder = written(tmp_path / "tree", {name: text + bomb for name, text in FILES.items()})
    assert read("vllm", str(folder)) == facts
    assert not mark.exists()


@pytest.mark.security
@pytest.mark.parametrize(
    "source",
    ["class ToyForCausalLM(", "x = " + "(" * 5000 + ")" * 5000, "\0", "x = " + "-" * 100_000 + "1",
     "class ToyForCausalLM(ToyForCausalLM): ...", "from .toy import ToyForCausalLM",
     "#" * (trees.FILE_LIMIT_BYTES + 1)],
    ids=["broken", "nested", "null", "deep", "inherits-itself", "imports-itself", "too-long"],
)  # fmt: skip
def test_a_class_that_cannot_be_read_is_unknown_and_the_others_are_not(tmp_path: Path, source: str) -> None:
    folder = written(tmp_path, {**FILES, f"{MODELS}/toy.py": source})
    facts = read("vllm", str(folder))
    assert facts["classes"]["toy.ToyForCausalLM"]["lora"] in (None, False)
    assert facts["classes"]["quiet.QuietForCausalLM"] == {"lora": False}


@pytest.mark.security
def test_values_that_double_and_circle_are_not_evaluated_without_end(tmp_path: Path) -> None:
    doubling = "\n".join([f"a0 = {['x'] * 50!r}", *(f"a{n + 1} = a{n} + a{n}" for n in range(60))])
    maps = "\n".join(["m0 = {'x': 1}", *(f"m{n + 1} = {{**m{n}, **m{n}}}" for n in range(38))])
    chain = "\n".join(["class C0(nn.Module): ...", *(f"class C{n + 1}(C{n}): ..." for n in range(3000))])
    circle = "p = q\nq = p\nclass Holder:\n    value = p\n"
    folder = written(tmp_path, {"vllm/__init__.py": "", "vllm/odd.py": "\n".join([doubling, maps, chain, circle])})
    with trees.opened(str(folder), "vllm") as tree:
        library = Library(tree)
        for name in ("a60", "m38", "p"):
            definition = library.find(f"vllm.odd.{name}")
            assert definition is not None
            assert library.evaluate(definition.node, "vllm.odd") is UNREADABLE
        last = library.find("vllm.odd.C3000")
        assert last is not None
        assert len(library.mro(last)) <= 60
        assert library.attribute(last, "value") is ABSENT


@pytest.mark.security
def test_a_member_of_an_archive_is_cut_at_the_limit_and_links_lead_nowhere(tmp_path: Path) -> None:
    wheel = zipped(tmp_path / "bomb.whl", {**FILES, f"{MODELS}/toy.py": " " * (64 * 2**20)})
    assert read("vllm", str(wheel))["classes"]["toy.ToyForCausalLM"] == {"lora": None}
    outside = tmp_path / "outside.py"
    outside.write_text(TOY)
    folder = written(tmp_path / "tree", {k: v for k, v in FILES.items() if not k.endswith("toy.py")})
    (folder / MODELS / "toy.py").symlink_to(outside)
    assert read("vllm", str(folder))["classes"]["toy.ToyForCausalLM"] == {"lora": None}


def test_a_source_that_is_another_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="_VLLM_MODELS"):
        read("vllm", str(written(tmp_path, {"vllm/__init__.py": ""})))


# ------------------------------------------------------------------ the file of all versions
def test_versions_share_what_is_equal_and_come_back_as_they_were(facts: dict[str, Any]) -> None:
    changed = {**facts, "classes": {**facts["classes"], "toy.BareForCausalLM": {"lora": False}}}
    changed["architectures"] = {k: v for k, v in facts["architectures"].items() if k != "ToyModel"}
    versions = {"0.9.0": facts, "0.10.0": changed, "0.11.0": facts}
    document = compressed("vllm", versions)
    assert document["versions"] == ["0.9.0", "0.10.0", "0.11.0"]
    assert document["architectures"]["ToyModel"] == {
        "0.9.0": "toy.ToyForCausalLM", "0.10.0": None, "0.11.0": "toy.ToyForCausalLM",
    }  # fmt: skip
    assert document["classes"]["toy.ToyForCausalLM"] == {"0.9.0": facts["classes"]["toy.ToyForCausalLM"]}
    assert expanded(json.loads(rendered(document))) == versions


def test_a_classifier_is_evaluated_as_the_class_it_is_converted_from(
    facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_facts, "_document", lambda engine: compressed(engine, {"1.0": facts}))
    converted = source_facts.of("vllm", (1, 0), "ToyForSequenceClassification")
    assert converted["source_class"] == "toy.ToyForCausalLM"
    assert converted["source_embeddings"] == ("embed_tokens", "lm_head", "wte")
    assert converted["source_modules"] == ("embed_tokens", "k_proj", "lm_head", "o_proj", "q_proj", "v_proj", "wte")
    assert source_facts.of("vllm", (1, 0), "OtherForCausalLM")["source_registered"] is False
    unknown = source_facts.of("vllm", (1, 0), "GoneForCausalLM")
    assert (unknown["source_registered"], "source_lora" in unknown) == (True, False)
