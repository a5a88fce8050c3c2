"""The recipes for torchrun, SLURM and Kubernetes in the documentation: syntax and options."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

PAGE = (Path(__file__).parents[1] / "docs" / "many_hosts.md").read_text()
SHELL = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "torchrun" in block]
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def check_torchrun(words):
    """Check that torchrun understands its words, and hands all others to ``fit``."""
    found = parse_args(words)
    assert found.module and found.training_script == "fastlstm.cli"
    assert found.training_script_args == words[words.index("fastlstm.cli") + 1 :]
    assert found.training_script_args[0] == "fit"


@pytest.mark.parametrize("block", SHELL)
def test_shell_recipes(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if "torchrun" in words:
            words = [word for word in words[words.index("torchrun") + 1 :] if word != "&"]
            check_torchrun([word.replace("$(hostname)", "host") for word in words])


def test_the_kubernetes_recipe():
    service, job = yaml.safe_load_all(YAML[0])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    check_torchrun(container["args"])
    name = job["metadata"]["name"]
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:29500" in container["args"]


def test_there_are_recipes():
    assert len(SHELL) == 3 and len(YAML) == 1
