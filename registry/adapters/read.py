"""Read what the files of a version say about themselves, by ranges. Client and server read the same way.

At most the configuration (256 KiB), the headers (16 MiB each) and the alphas of image adapters are read. Malformed is
`Invalid` or `TooLarge`; what is odd or does not add up is a finding, and so are tensor names of no known format.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from registry.adapters import formats, peft, safetensors
from registry.adapters.companions import refuse_code
from registry.adapters.formats import gguf, images, text
from registry.adapters.formats.facts import FileFacts
from registry.adapters.peft import LoraSpec, config
from registry.adapters.peft.config import AdapterConfig, BaseClaim
from registry.adapters.safetensors import Header
from registry.digest import Digest, Hasher
from registry.errors import Invalid
from registry.evaluation import golden
from registry.findings import Finding
from registry.versions.files import CONFIG, CONFIG_LIMIT_BYTES, GOLDEN, WEIGHTS, WEIGHTS_ENDINGS, Read
from registry.versions.manifest import FILES_LIMIT, Descriptor

_PREFIX = "base_model.model."
_PIECE = re.compile(r"adapter_model-\d+-of-\d+\.safetensors")
"""transformers writes such files where the weights are over `max_shard_size`."""
_HALVES = (".lora_A.weight", ".lora_B.weight")
_EMBEDDING_HALVES = (".lora_embedding_A", ".lora_embedding_B")


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one module's update, by the names of their tensors: A [rank, in] and B [out, rank].

    `is_turned`: stored as [in, rank] and [rank, out]. `experts`: so many in one: A [experts * rank, in] by experts,
    B [out, rank * experts] by ranks.
    """

    path: str
    rank: int
    scale: float
    a: str
    b: str
    is_turned: bool = False
    experts: int = 1


@dataclass(frozen=True, slots=True)
class PeftContents:
    config: AdapterConfig
    header: Header
    lora: LoraSpec
    findings: tuple[Finding, ...] = ()
    format = formats.PEFT

    @property
    def claim(self) -> BaseClaim:
        """What the configuration calls the base."""
        return self.config.base

    @property
    def pairs(self) -> Iterator[Pair]:
        """Of every module whose update is one product. A parameter of a block of experts is one, named with it."""
        for module in self.lora.modules:
            if module.groups > 1:
                continue
            a, b = _EMBEDDING_HALVES if module.kind == "embedding" else _HALVES
            start, fused = f"{_PREFIX}{module.path}{'.base_layer' * max(module.order, 0)}", module.kind == "parameter"
            yield Pair(
                module.key if fused else module.path, module.rank, module.scale, start + a, start + b,
                experts=module.a_shape[0] // module.rank if fused else 1,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NonPeftContents:
    """An adapter that PEFT did not write: what its one weights file says of itself."""

    file: FileFacts
    header: Header
    findings: tuple[Finding, ...] = ()

    @property
    def format(self) -> formats.Format:
        """How the file was written."""
        return self.file.format

    @property
    def claim(self) -> BaseClaim:
        """The base that the file names."""
        return BaseClaim(name=self.file.base_claimed)

    @property
    def pairs(self) -> Iterator[Pair]:
        """Those whose scale the file states; only LoRA has one."""
        for module in self.file.modules:
            if module.a and module.rank and module.scale is not None:
                yield Pair(module.path, module.rank, module.scale, module.a, module.b, module.is_turned)


AdapterContents = PeftContents | NonPeftContents


def read_any(files: Iterable[Descriptor], read: Read, *, with_values: bool = True) -> AdapterContents:
    """What these files say, whichever tool wrote them. Without values, the alphas of image adapters are not read.

    `Invalid` (MANIFEST_INVALID) when it is not clear which file holds the weights or PEFT's configuration is missing;
    `Invalid` (FILE_REFUSED) for a format that must be converted elsewhere, with advice.
    """
    by_path = {f.path: f for f in files}
    if (samples := by_path.get(GOLDEN)) is not None:  # refused before anything relies on them
        golden.read_golden(read(GOLDEN, 0, samples.size_bytes))
    weights = [path for path in by_path if path.endswith(WEIGHTS_ENDINGS)]
    fields = _config_fields(by_path, read)
    if WEIGHTS in by_path or not weights or "peft_type" in fields:  # mlx has `fine_tune_type` in its place
        return _read_peft(by_path, fields, read)
    if len(weights) > 1:
        message = f"is one of {len(weights)} weights files, and none of them is {WEIGHTS}"
        reason = Finding("adapter.weights_ambiguous", weights[0], message)
        raise Invalid.from_finding("MANIFEST_INVALID", reason, next_step="push each file as an adapter of its own")
    return _read_non_peft(by_path[weights[0]], fields, read, with_values)


def weights_of(files: Iterable[Descriptor]) -> Descriptor:
    """The file that holds the weights: PEFT's by its name, else the first one that may. The manifest has one."""
    candidates = [f for f in files if f.path.endswith(WEIGHTS_ENDINGS)]
    return next((f for f in candidates if f.path == WEIGHTS), candidates[0])


def read_by_names(contents: AdapterContents) -> AdapterContents:
    """Read a file with the names of torchtune or mlx-lm as theirs, although it is PEFT's by its name and configuration.

    The scale is that of the configuration where it is one for all modules; otherwise it is unknown.
    """
    format = formats.of_header(contents.header).format
    if not isinstance(contents, PeftContents) or format.converts_to != formats.PEFT.name:
        return contents
    config = contents.config
    is_plain = not (config.use_rslora or config.rank_pattern or config.alpha_pattern)
    fields = {"r": config.rank or None, "lora_alpha": config.alpha if is_plain else None,
              "base_model_name_or_path": config.base.name or None}  # fmt: skip
    facts = text.of_header(contents.header, format, config={k: v for k, v in fields.items() if v is not None})
    return NonPeftContents(facts.model_copy(update={"file": WEIGHTS}), contents.header)


def read_contents(files: Iterable[Descriptor], read: Read) -> PeftContents:
    """The configuration, the header and the LoraSpec of a PEFT adapter's files.

    `Invalid` (MANIFEST_INVALID) when the weights or the configuration are not among them.
    """
    by_path = {f.path: f for f in files}
    return _read_peft(by_path, _config_fields(by_path, read), read)


def _config_fields(by_path: Mapping[str, Descriptor], read: Read) -> dict[str, Any]:
    """The object in adapter_config.json; empty if there is no such file."""
    file = by_path.get(CONFIG)
    return {} if file is None else config.parse_config(read(CONFIG, 0, min(file.size_bytes, CONFIG_LIMIT_BYTES + 1)))


def _read_peft(by_path: Mapping[str, Descriptor], fields: dict[str, Any], read: Read) -> PeftContents:
    if WEIGHTS in by_path and "peft_type" not in fields:
        _refuse_other_tool(by_path[WEIGHTS], read)
    _refuse_missing(by_path)
    parsed = config.read_fields(fields)
    headers = {path: _header(f, read) for path, f in by_path.items() if path.endswith(".safetensors")}
    for path, file in by_path.items():
        if path.endswith(".gguf") and read(path, 0, min(len(gguf.MAGIC), file.size_bytes)) != gguf.MAGIC:
            raise Invalid.from_finding(
                "TENSORS_INVALID", Finding("gguf.magic_invalid", path, "does not begin with 'GGUF'")
            )
    message = f"{{}} is stored, but nothing reads it: an adapter's weights are {WEIGHTS}"
    extra = tuple(
        Finding.of("warning", "adapter.extra_weights", path, message.format(path))
        for path in by_path
        if path.endswith(WEIGHTS_ENDINGS) and path != WEIGHTS
    )
    return PeftContents(parsed, headers[WEIGHTS], peft.describe(parsed, headers[WEIGHTS]), extra)


def _read_non_peft(file: Descriptor, fields: dict[str, Any], read: Read, with_values: bool) -> NonPeftContents:
    def within(offset: int, length: int) -> bytes:
        return read(file.path, offset, length)

    packed = gguf.read_header(within, file.size_bytes, file=file.path) if file.path.endswith(".gguf") else None
    header = packed.header if packed else _header(file, read)
    refuse_code(fields, CONFIG)
    recognized = formats.of_header(header)
    format = recognized.format
    if format == formats.PEFT:
        _refuse_missing({file.path: file})
    if format == formats.NEMO:
        message = f"is an adapter of NeMo ({recognized.evidence}), which no supported loader reads; {format.advice}"
        raise Invalid.from_finding("FILE_REFUSED", Finding("format.convert_first", file.path, message))
    if format.is_image:
        facts = images.of_header(header, format, read=within if with_values else None)
    else:
        facts = text.of_header(header, format, config=fields, gguf=packed)
    return NonPeftContents(facts.model_copy(update={"file": file.path}), header, _about(recognized, packed, file.path))


def _about(recognized: formats.Recognized, packed: gguf.Gguf | None, path: str) -> tuple[Finding, ...]:
    """What the names alone say: an unknown format, or a GGUF file that is no LoRA adapter."""
    if packed is not None and packed.kinds != (gguf.ADAPTER, "lora"):
        kind = packed.kinds[0] or "no general.type"
        message = f"{path} is a GGUF file of another kind ({kind}), not a LoRA adapter"
        return (Finding.of("error", "format.gguf_not_adapter", path, message),)
    if recognized.format != formats.UNKNOWN:
        return ()
    location = recognized.unexpected[0] if recognized.unexpected else path
    return (Finding.of("error", "format.unknown", location, f"{recognized.message}; {recognized.format.advice}"),)


def _header(file: Descriptor, read: Read) -> Header:
    return safetensors.read_header(
        lambda offset, length: read(file.path, offset, length), file.size_bytes, file=file.path
    )


def _refuse_other_tool(file: Descriptor, read: Read) -> None:
    """Refuse another tool's file under PEFT's name, rather than miss PEFT's configuration."""
    recognized = formats.of_header(_header(file, read))
    if recognized.format not in (formats.UNKNOWN, formats.PEFT):
        tool = recognized.format
        message = f"has the tensor names of {tool} ({recognized.evidence}), and a file of this name is PEFT's"
        next_step = f"rename it, such as to {tool}.safetensors, and push it again"
        raise Invalid.from_finding(
            "MANIFEST_INVALID", Finding("adapter.weights_misnamed", file.path, message), next_step=next_step
        )


def _refuse_missing(by_path: Mapping[str, Descriptor]) -> None:
    needed = ((WEIGHTS, "adapter.weights_missing"), (CONFIG, "adapter.config_missing"))
    message, next_step = "is missing, and an adapter needs it", "push the folder that save_pretrained() wrote"
    if pieces := sum(bool(_PIECE.fullmatch(path)) for path in by_path):
        message = f"is missing: the weights are in {pieces} pieces, and PEFT and vLLM read one file of that name"
        next_step = "save the adapter in one file, as PEFT's `save_pretrained` does"
    findings = [Finding(code, path, message) for path, code in needed if path not in by_path]
    if findings:
        raise Invalid(
            "MANIFEST_INVALID",
            f"{findings[0].location} {message}",
            findings=findings,
            next_step=next_step,
        )


Value = TypeVar("Value")
PIECES_LIMIT = FILES_LIMIT
"""What reads more pieces is not remembered."""
BYTES_LIMIT = 4 * 2**20
"""How many bytes were read for all that is remembered. Parsed, a header takes many times its bytes."""
Piece = tuple[str, int, int]
"""Path, start and length."""


class ReadCache(Generic[Value]):
    """The last `limit` results, of `limit_bytes` that were read; none for results of a few bytes. Thread-safe.

    Adapters that one script trained have the same configuration and header, byte for byte.

    A computation must depend on its key and on what it reads, and on nothing else. Then it reads the same pieces again
    as long as these have the same bytes, and has the same result. A result counts for exactly the pieces that it was
    computed from: the same bytes at other positions are other content.
    """

    def __init__(self, limit: int, limit_bytes: float = BYTES_LIMIT) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._lock = threading.Lock()
        self._pieces: OrderedDict[Hashable, list[Piece]] = OrderedDict()
        """Key → what the last computation with this key has read."""
        self._values: OrderedDict[tuple[Hashable, Digest], tuple[Value, int]] = OrderedDict()
        """Key and digest of what was read where → the result, and how many bytes were read."""

    def compute(self, key: Hashable, read: Read, function: Callable[[Read], Value]) -> Value:
        """The result of `function` for these files, computed or remembered. Errors are not remembered."""
        with self._lock:
            pieces = self._pieces.get(key, [])
        data_of = {piece: read(*piece) for piece in pieces}
        if pieces:
            with self._lock:
                remembered = self._values.get((key, _digest(data_of)))
            if remembered is not None:
                return remembered[0]
        data_by_piece: dict[Piece, bytes] = {}

        def read_and_note(path: str, start: int, length: int) -> bytes:
            piece = (path, start, length)
            data_by_piece[piece] = data = data_of[piece] if piece in data_of else read(path, start, length)
            return data

        value = function(read_and_note)
        size_bytes = sum(map(len, data_by_piece.values()))
        if len(data_by_piece) <= PIECES_LIMIT and size_bytes <= self._limit_bytes:
            with self._lock:
                _remember(self._pieces, key, list(data_by_piece), self._limit)
                _remember(self._values, (key, _digest(data_by_piece)), (value, size_bytes), self._limit)
                while sum(size for _, size in self._values.values()) > self._limit_bytes:
                    self._values.popitem(last=False)
        return value


Name = TypeVar("Name", bound=Hashable)
Entry = TypeVar("Entry")


def _remember(entries: OrderedDict[Name, Entry], name: Name, entry: Entry, limit: int) -> None:
    entries[name] = entry
    entries.move_to_end(name)
    while len(entries) > limit:
        entries.popitem(last=False)


def _digest(data_of: dict[Piece, bytes]) -> Digest:
    hasher = Hasher()
    for piece, data in data_of.items():
        hasher.update(f"{piece!r} {len(data)} ".encode())
        hasher.update(data)
    return hasher.digest()
