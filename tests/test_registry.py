"""Names in a configuration -> classes, without a list of names anywhere."""

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

import sslsv.encoders
import sslsv.evaluations
import sslsv.methods
from sslsv.encoders.base import Encoder, EncoderConfig
from sslsv.errors import ConfigError
from sslsv.evaluations.base import Task, TaskConfig
from sslsv.methods.base import Method, MethodConfig
from sslsv.registry import ENCODERS, EVALUATIONS, METHODS, Registry

PLUGIN = """\
from dataclasses import dataclass
from {package}.registry import REGISTRY

@dataclass
class {name}Config:
    size: int = 3

@REGISTRY.register("{key}", {name}Config)
class {name}:
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """A package with a registry of its own, as ``sslsv.encoders`` has; ``add`` drops files in."""
    name = f"plugins_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    registry = f"from sslsv.registry import Registry\nREGISTRY = Registry('thing', '{name}')\n"
    (folder / "registry.py").write_text(registry)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def add(file: str, cls: str, key: str) -> None:
        text = PLUGIN.format(package=name, name=cls, key=key)
        (folder / f"{file}.py").write_text(text)

    def registry_of_it() -> Registry:
        return __import__(f"{name}.registry", fromlist=["REGISTRY"]).REGISTRY

    yield add, registry_of_it
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_new_file_is_all_it_takes(package):
    add, registry = package
    add("tdnn", "TDNN", "tdnn")
    add("my_net", "MyNet", "mynet")
    things = registry()
    assert things.names() == ["mynet", "tdnn"]
    entry = things.get("mynet")
    assert (entry.cls.__name__, entry.config.__name__) == ("MyNet", "MyNetConfig")
    assert entry.config().size == 3
    assert things.class_named("TDNN") is things.get("tdnn").cls
    assert things.class_named("TDNNConfig") is things.get("tdnn").config


def test_one_name_for_classes_of_two_files_is_refused(package):
    add, registry = package
    add("a", "A", "net")
    add("b", "B", "net")
    with pytest.raises(ValueError, match=r"thing 'net' is already \w+\.a"):
        registry().names()


def test_an_unknown_name_suggests_the_nearest_and_lists_all(package):
    add, registry = package
    add("a", "A", "resnet34")
    add("b", "B", "tdnn")
    message = "type: unknown thing 'resnet43'; did you mean 'resnet34'\\? available: resnet34, tdnn"
    with pytest.raises(ConfigError, match=message):
        registry().get("resnet43")


@pytest.mark.parametrize("name", ["quite_different", None, 3, [], ""])
def test_anything_else_lists_all(name):
    with pytest.raises(ConfigError, match=r"^type: unknown encoder .*; available: .*resnet34"):
        ENCODERS.get(name)


def test_an_unknown_class_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'sslsv\.encoders' has no attribute 'ResNet99'"):
        _ = sslsv.encoders.ResNet99
    assert not hasattr(sslsv.methods, "nothing")


def test_names_a_notebook_uses():
    from sslsv.encoders import ResNet34
    from sslsv.methods import SimCLR

    assert sslsv.encoders.ResNet34 is ResNet34 is ENCODERS.get("resnet34").cls
    assert sslsv.methods.SimCLR is SimCLR is METHODS.get("simclr").cls
    assert sslsv.encoders.ResNet34.__module__ == "sslsv.encoders.resnet34"
    assert sslsv.methods.SimCLRConfig is METHODS.get("simclr").config
    assert sslsv.evaluations.__getattr__(EVALUATIONS.get("sv_cosine").cls.__name__)


@pytest.mark.parametrize(
    ("registry", "cls", "config"),
    [
        (ENCODERS, Encoder, EncoderConfig),
        (METHODS, Method, MethodConfig),
        (EVALUATIONS, Task, TaskConfig),
    ],
    ids=["encoders", "methods", "evaluations"],
)
def test_every_entry_is_of_its_kind(registry, cls, config):
    assert registry.names() == sorted(registry.names())
    for name in registry.names():
        entry = registry.get(name)
        assert issubclass(entry.cls, cls)
        assert issubclass(entry.config, config)


def test_the_same_module_may_register_again():
    """As happens when a notebook reloads it."""

    @dataclass
    class Config:
        pass

    registry = Registry("thing", "json")
    first = registry.register("a", Config)(type("A", (), {"__module__": "m"}))
    second = registry.register("a", Config)(type("A", (), {"__module__": "m"}))
    assert registry.get("a").cls is second is not first


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``code``."""
    script = textwrap.dedent(f"""
        import sys
        {code}
        print(*{{name.partition(".")[0] for name in sys.modules}})
    """)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["sslsv", "sslsv.cli", "sslsv.encoders", "sslsv.methods"])
def test_importing_is_instant(module):
    heavy = {"torch", "torchaudio", "numpy", "pandas", "sklearn", "matplotlib", "wandb"}
    loaded = imported_by(f"import {module}")
    assert "sslsv" in loaded
    assert not loaded & heavy


def test_training_does_not_import_what_it_does_not_use():
    loaded = imported_by("import sslsv.experiment")
    assert "torch" in loaded
    assert not loaded & {"wandb", "matplotlib", "tensorboard", "sklearn"}
