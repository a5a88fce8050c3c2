"""The configuration of a run: packaged ones by their names, and the file that is saved."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from fastlstm import configs

_GIVEN = ("-c", "--config", "--model", "-h", "--help", "--print_config")


class RunConfig(SaveConfigCallback):
    """Save the configuration as config.yaml in the run's folder, wherever loggers write."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


def with_packaged_configurations(words: Sequence[str]) -> list[str]:
    """Return the words with ``--config NAME`` replaced by the path of a packaged configuration."""
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if found and found[-1] in ("-c", "--config"):
            word = configs.find(word)
        elif equals and option in ("-c", "--config"):
            word = f"{option}={configs.find(value)}"
        found.append(word)
    return found


def check_that_a_model_is_given(words: Sequence[str], program: str, example: str) -> None:
    """Raise ValueError if the words have a command, but neither a configuration nor a model.

    Args:
        words: the words after the program's name.
        program: the program's name, as users type it.
        example: a configuration to name in the error.
    """
    asked = [word for word in words if word in LightningCLI.subcommands()]
    if not asked or any(word.startswith(_GIVEN) for word in words):
        return
    raise ValueError(
        "config: expected --config NAME, --config FILE or --model, got none of them; try"
        f" `{program} {asked[0]} --config {example}`"
        + ("; `fastlstm configs` lists all names" if example in configs.names() else "")
    )
