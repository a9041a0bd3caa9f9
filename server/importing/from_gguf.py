"""Convert a GGUF file to a folder that Pippin serves, and report what it becomes and what is lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import __version__
from server.importing import tokenizer
from server.importing.architectures import draw
from server.importing.blueprint import Blueprint
from server.importing.dtypes import DType, DTypeName
from server.importing.folder import Contents, Folder, to_json
from server.importing.gguf_file import Tensor
from server.importing.gguf_split import read_model
from server.importing.go_template import to_jinja
from server.importing.metadata import Metadata
from server.importing.parts import EIGHT_BITS, Converter
from server.importing.problems import CannotImport
from server.importing.requantize import BITS
from server.importing.tokenizer_folder import read_folder

_USUAL_BITS = 4
_JSON_NAME = "tokenizer.huggingface.json"


@dataclass(frozen=True, slots=True)
class Wishes:
    """Options of an import."""

    requantize_bits: int | None = None
    dtype: DTypeName | None = None
    tokenizer_folder: Path | None = None
    q6_bits: int = EIGHT_BITS
    template: str | None = None
    """TEMPLATE of a Modelfile, used if the file has no chat template."""


class GGUFImport:
    """One import, checked completely before a byte is written. Raises CannotImport."""

    def __init__(self, path: Path, wishes: Wishes | None = None) -> None:
        self._wishes = wishes or Wishes()
        self.model = read_model(path)
        metadata = Metadata(self.model.metadata)
        self.architecture = metadata.architecture
        self._blueprint = blueprint = draw(metadata, self.model.tensors)
        self.notes = blueprint.notes
        self.dtype = DType(self._wishes.dtype or usual_dtype(self.model.tensors, blueprint))
        if self._wishes.q6_bits not in (6, EIGHT_BITS):
            raise CannotImport(f"--q6 takes 6 or 8 bits, not {self._wishes.q6_bits}")
        q6_bits = self._wishes.q6_bits
        self._converter = Converter(blueprint, self.model.tensors, self.dtype, self._wishes.requantize_bits, q6_bits)
        self._check_readable(path, blueprint)
        parts = self._converter.parts()
        small, self.has_template = _small_files(metadata, blueprint.config["vocab_size"], self._wishes)
        self.template_note = self._take_template(small)
        config = {**blueprint.config, "torch_dtype": self.dtype.name, **_token_ids(metadata)}
        quantization = _quantization(self._converter.quantization())
        if quantization is not None:
            config["quantization"] = quantization
        self.contents = Contents(parts, config, small, self._source(), self._converter.losses)

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Input and output size of each linear layer, by path."""
        linear = (weight for weight in self._blueprint.weights if weight.form == "linear" and len(weight.shape) == 2)
        return {weight.target: (weight.shape[1], weight.shape[0]) for weight in linear}

    @property
    def types(self) -> dict[str, int]:
        """Bytes of the file by type."""
        found: Counter[str] = Counter()
        for tensor in self.model.tensors.values():
            found[tensor.type.name] += tensor.num_bytes
        return dict(found.most_common())

    @property
    def losses(self) -> dict[str, float]:
        """Relative error added by requantizing, by type, for the data that this run has written."""
        return self._converter.losses.relative()

    def describe(self) -> list[str]:
        """Return lines for users: what the file contains, and what it becomes."""
        types = ", ".join(f"{kind} {size(num_bytes)}" for kind, num_bytes in self.types.items())
        config = self.contents.config
        layers, context = config["num_hidden_layers"], config["max_position_embeddings"]
        widths = Counter(self._converter.quantization().values())
        matrices = ", ".join(f"{number} at {bits} bits" for bits, number in widths.most_common()) or "none quantized"
        lines = [
            f"{self.model.name}: {self.architecture}, {layers} layers, a context of {context} tokens; {types}",
            f"becomes {size(self.contents.num_bytes)} in MLX's format; matrices: {matrices}; the rest "
            f"{self.dtype.name}",
            *self.notes,
        ]
        if not self.has_template:
            lines.append("the file has no chat template: chats are refused until there is one, completions are not")
        return lines

    def _take_template(self, small: dict[str, bytes]) -> str:
        """Use the Modelfile's template if the file has none, and return the outcome as text for users."""
        if self._wishes.template is None:
            return ""
        if self.has_template:
            return "has no effect: the model's own chat template is used"
        begins = b"TemplateProcessing" in small.get("tokenizer.json", b"")
        try:
            template = to_jinja(self._wishes.template, begins_with_bos=begins)
        except CannotImport as error:
            return f"has no effect: {error}, which is not converted; give the model's folder with --tokenizer"
        small["chat_template.jinja"] = template.encode()
        self.has_template = True
        return "is the chat template: the file has none of its own"

    def folder(self, path: Path) -> Folder:
        """Return the folder that the import writes. Raises CannotImport for the folder of another import."""
        return Folder(path, self.contents)

    def _check_readable(self, path: Path, blueprint: Blueprint) -> None:
        """Refuse types that MLX cannot hold, unless bits are given for them. Raises CannotImport."""
        bits, found = self._wishes.requantize_bits, self._converter.unreadable()
        if bits is not None and bits not in BITS:
            raise CannotImport(f"--requantize takes {', '.join(map(str, BITS))} bits, not {bits}")
        if not found or bits is not None:
            return

        def become(bits: int) -> str:
            parts = Converter(blueprint, self.model.tensors, self.dtype, bits, self._wishes.q6_bits).parts()
            return size(sum(part.num_bytes for part in parts))

        number, kinds = sum(map(len, found.values())), ", ".join(sorted(found))
        usual, least = _USUAL_BITS, min(BITS)
        raise CannotImport(
            f"{path} has {number} tensors of type {kinds}, which MLX cannot hold: quantized anew, its "
            f"{size(self.model.num_bytes)} become {become(usual)} at {usual} bits and a little worse, or at least "
            f"{become(least)}, at {least} bits and much worse; if that is wanted: --requantize {usual}"
        )

    def _source(self) -> dict[str, Any]:
        facts = [(file.name, file.stat()) for file in self.model.files]
        return {
            "made_by": f"pippin {__version__}",
            "files": [{"name": name, "bytes": fact.st_size, "modified_ns": fact.st_mtime_ns} for name, fact in facts],
            "architecture": self.architecture,
            "types": self.types,
            "dtype": self.dtype.name,
            "requantize_bits": self._wishes.requantize_bits,
            "q6_bits": self._wishes.q6_bits,
            "notes": self.notes,
        }


def usual_dtype(tensors: Mapping[str, Tensor], blueprint: Blueprint) -> DTypeName:
    """Return float16, as scales are stored; bfloat16 if the file has it or activations exceed float16's range."""
    has_bfloat16 = any(tensor.type.name == "BF16" for tensor in tensors.values())
    return "bfloat16" if has_bfloat16 or blueprint.is_wide else "float16"


def _small_files(metadata: Metadata, vocab: int, wishes: Wishes) -> tuple[dict[str, bytes], bool]:
    """Return the tokenizer's files, and whether they include a chat template. Raises CannotImport."""
    template = tokenizer.chat_template(metadata)
    if wishes.tokenizer_folder is not None:
        tokens = tokenizer.tokens_of(metadata) if metadata.has("tokenizer.ggml.tokens") else None
        files = read_folder(wishes.tokenizer_folder, tokens)
        has_own = "chat_template.jinja" in files or "chat_template.json" in files
        has_own = has_own or b'"chat_template"' in files.get("tokenizer_config.json", b"")
        if not has_own and template is not None:
            files["chat_template.jinja"] = template.encode()
        return files, has_own or template is not None
    own = metadata.text(_JSON_NAME, None)
    made = to_json(tokenizer.make(metadata, vocab)) if own is None else own.encode()
    settings = to_json(tokenizer.settings(metadata, vocab))
    return {"tokenizer.json": made, "tokenizer_config.json": settings}, template is not None


def _token_ids(metadata: Metadata) -> dict[str, Any]:
    if not metadata.has("tokenizer.ggml.tokens"):
        return {}
    ends = tokenizer.end_ids(metadata)
    if not ends:
        raise CannotImport("the file does not say which token ends an answer (tokenizer.ggml.eos_token_id)")
    bos = metadata.whole("tokenizer.ggml.bos_token_id", None, least=0)
    return {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _quantization(bits_of: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the section of config.json: the bits of most weights, and of each exception."""
    if not bits_of:
        return None
    by_bits: defaultdict[int, int] = defaultdict(int)
    for bits in bits_of.values():
        by_bits[bits] += 1
    usual = max(by_bits, key=lambda bits: by_bits[bits])
    settings = {"group_size": 32, "bits": usual, "mode": "affine"}
    others = {target: {**settings, "bits": bits} for target, bits in bits_of.items() if bits != usual}
    return {**settings, **others}


def size(num_bytes: int) -> str:
    """Format a size for users."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.1f} MB"
