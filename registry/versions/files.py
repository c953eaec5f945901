"""Files of versions and bases: well-known names, and the kinds, media types and limits that a push allows."""

import fnmatch
import functools
from collections.abc import Callable
from dataclasses import dataclass

from registry.findings import Finding

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILES = (CHAT_TEMPLATE, TOKENIZER_CONFIG)
"""Files with chat templates."""
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
VOCABULARY = "vocab.json"
MERGES = "merges.txt"
SENTENCEPIECE = "tokenizer.model"
TRAINER_STATE = "trainer_state.json"
GOLDEN = "golden.jsonl"
TOKENIZER_FILES = frozenset(
    {TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, VOCABULARY, MERGES, SENTENCEPIECE, CHAT_TEMPLATE}
)
"""What a tokenizer consists of; its chat template belongs to it."""
NOTE = ".adapter.json"
"""The registry's own file in a pulled folder; never a part of a version."""
PARTIAL_NOTE = ".adapter.partial.json"
"""Stands in place of `NOTE` in a folder that has only some files of a version."""
CHUNK_BYTES = 2**20
"""How much of a file or stream is read at a time."""
WEIGHTS_CHUNK_BYTES = 4 * 2**20
"""How much of a tensor is computed with at a time."""
WEIGHTS_ENDINGS = (".safetensors", ".gguf")
"""How the names of weights files end. PEFT's weights file is `WEIGHTS`; those of other tools have any name."""

BASE_CONFIG = "config.json"
BASE_WEIGHTS = "model.safetensors"
BASE_WEIGHTS_INDEX = "model.safetensors.index.json"
PIPELINE_WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINE_WEIGHTS_INDEX = "diffusion_pytorch_model.safetensors.index.json"
PIPELINE_INDEX = "model_index.json"

CONFIG_LIMIT_BYTES = 256 * 2**10
FILE_LIMIT_BYTES = 20 * 2**30

Read = Callable[[str, int, int], bytes]
"""(path, offset, length) → those bytes of that file of a version, fewer only at its end."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file that a version may hold: a path pattern, its media type, its size limit."""

    pattern: str
    media_type: str
    limit_bytes: int


KINDS: tuple[FileKind, ...] = (
    FileKind("*.safetensors", "application/vnd.safetensors", FILE_LIMIT_BYTES),
    FileKind("*.gguf", "application/vnd.gguf", FILE_LIMIT_BYTES),
    FileKind(CONFIG, "application/vnd.peft.config+json", CONFIG_LIMIT_BYTES),
    FileKind(CARD, "text/markdown", 2**20),
    FileKind(CHAT_TEMPLATE, "text/vnd.chat-template", 64 * 2**10),
    FileKind(TOKENIZER, "application/vnd.tokenizer+json", 64 * 2**20),
    FileKind(TOKENIZER_CONFIG, "application/json", 2**20),
    FileKind(SPECIAL_TOKENS_MAP, "application/json", 2**20),
    FileKind(ADDED_TOKENS, "application/json", 2**20),
    FileKind(VOCABULARY, "application/json", 32 * 2**20),
    FileKind(MERGES, "text/plain", 32 * 2**20),
    FileKind(SENTENCEPIECE, "application/vnd.sentencepiece", 64 * 2**20),
    FileKind(TRAINER_STATE, "application/json", 8 * 2**20),
    FileKind("training_args.yaml", "text/yaml", 2**20),
    FileKind(GOLDEN, "application/vnd.adapter-registry.evaluation.golden+jsonl", 2**20),
    FileKind("LICENSE", "text/plain", 2**20),
)

_WHOLE_MODEL = (
    BASE_WEIGHTS, "model-*-of-*.safetensors", BASE_WEIGHTS_INDEX, "pytorch_model*.bin", "pytorch_model.bin.index.json",
    "tf_model.h5", "flax_model.msgpack", "consolidated*.pth", "consolidated*.safetensors",
    "diffusion_pytorch_model*.safetensors", PIPELINE_INDEX,
)  # fmt: skip
"""Names that training libraries give to the files of a whole model."""
WHOLE_MODEL = "file.whole_model"
WHOLE_MODEL_STEP = "keep models in a model store, and register the base here: `adapter base add NAME DIR`"
_BY_NEMO = "export it to PEFT with NeMo's or Megatron-Bridge's adapter export"
_PICKLE = "may be a pickle, which runs code when read; save as safetensors"
REFUSED: tuple[tuple[str, str, str], ...] = (
    ("*.bin", "file.pickle_refused", _PICKLE),
    ("*.pt", "file.pickle_refused", _PICKLE),
    ("*.pth", "file.pickle_refused", _PICKLE),
    ("*.pkl", "file.pickle_refused", "is a pickle, which runs code when read"),
    ("*.ckpt", "file.pickle_refused", _PICKLE),
    ("*.py", "file.code_refused", "is code, and an adapter needs none"),
    ("*.so", "file.code_refused", "is code, and an adapter needs none"),
    ("*.zip", "file.archive_refused", "is an archive; push the files themselves"),
    ("*.tar*", "file.archive_refused", "is an archive; push the files themselves"),
    ("*.nemo", "file.archive_refused", f"is an archive of NeMo with a pickle in it; {_BY_NEMO}"),
    ("*.distcp", "file.archive_refused", f"is a piece of a checkpoint of NeMo or Megatron; {_BY_NEMO}"),
    (f"*/{CONFIG}", "file.nested_config", "is in a folder; push that folder as its own adapter"),
    ("*.tensors", "file.archive_refused", "is vLLM's cache of an adapter; push the PEFT adapter that it was made from"),
)
"""Kinds that are refused with a reason of their own; other files are `WHOLE_MODEL` or `file.kind_unknown`."""


@functools.lru_cache(maxsize=256)
def kind_of(path: str) -> FileKind | None:
    """The kind of a path in the version's root or a folder below it, or None for one that no version holds."""
    name = path.rsplit("/", 1)[-1]
    if name == CONFIG != path or is_of_model(path):  # the registry checks the one in the root only
        return None
    return next((kind for kind in KINDS if fnmatch.fnmatchcase(name, kind.pattern)), None)


def is_of_model(path: str) -> bool:
    """Whether a file has the name of a file of a whole model."""
    name = path.rsplit("/", 1)[-1].lower()
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _WHOLE_MODEL)


def refusal_of(path: str) -> Finding:
    """Why a file without a kind is refused."""
    if is_of_model(path):
        return Finding(WHOLE_MODEL, path, "holds a whole model, not an adapter")
    for pattern, code, message in REFUSED:
        if fnmatch.fnmatchcase(path.lower(), pattern):
            return Finding(code, path, message)
    return Finding("file.kind_unknown", path, "is not a kind of file that an adapter version holds")
