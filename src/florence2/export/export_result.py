"""What an export wrote, and how far it is from its model: printed, and saved beside the weights."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from florence2.errors import OptionError
from florence2.export.comparison import LogitsComparison
from florence2.export.export_folder import EXPORT_FILE
from florence2.export.export_source import ExportSource, short_name
from florence2.files import atomic_write, to_json

# In float32 an export differs in the order of its sums alone; more than this is another model.
MAX_DIFFERENCE_FLOAT32 = 1e-2


@dataclass(frozen=True)
class ExportResult:
    """A finished export: its folder, target and dtype, its size, the time to load it, and the comparison."""

    output_path: Path
    target: str
    dtype: str
    model: str
    num_files: int
    num_bytes: int
    load_seconds: float
    comparison: LogitsComparison

    @classmethod
    def measure(
        cls, folder: Path, output_path: Path, target: str, dtype: str, source: ExportSource, **measured: object
    ) -> "ExportResult":
        """Count the files of a folder that becomes `output_path`."""
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        return cls(output_path, target, dtype, source.name, len(sizes), sum(sizes), **measured)  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        """Return the summary for the command line."""
        size = f"{self.num_bytes / 1e6:,.1f} MB in {self.num_files} files, loaded in {self.load_seconds:.1f} s"
        return [f"{self.output_path}: {self.target}, {self.dtype}, {size}", f"{self.comparison}"]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {"output_path": str(self.output_path)}

    def save(self, folder: Path) -> None:
        """Write the result into the folder of the export, without the paths of this machine."""
        names = {"output_path": self.output_path.name, "model": short_name(self.model)}
        with atomic_write(folder / EXPORT_FILE) as file:
            file.write(to_json(self.to_json() | names | {"florence2": version("florence2")}, indent=2) + "\n")

    def require_equal(self) -> None:
        """Raise OptionError for an export in float32 whose logits are not those of the model."""
        difference = self.comparison.max_difference
        if self.dtype == "float32" and difference > MAX_DIFFERENCE_FLOAT32:
            what = f"the logits of the export differ from the model's by {difference:.2g}, so that it is not released"
            raise OptionError(what, "report this with the command and the versions of torch and transformers")
