"""What one family of VAEs differs in is known in one place."""

import ast
import re
from pathlib import Path

import remote_vae

SOURCE = Path(remote_vae.__file__).parent
FAMILIES = SOURCE / "models" / "families"
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if FAMILIES not in path.parents]
# RemoteVAE gives back what diffusers' pipelines expect of a VAE, so it imports the types of return values.
RETURNED = {"client/pipeline.py": {"AutoencoderKLOutput"}}
CLASS = re.compile(r"\b(?:Asymmetric)?(?:Autoencoder[A-Z]\w*|VQModel|ConsistencyDecoderVAE|Kandinsky6SRVAE)\b")


def names_in(tree: ast.AST) -> set[str]:
    """Every name and every string of a module, docstrings included, that is the name of a class of diffusers."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.alias(name=text) | ast.Constant(value=str(text)):
                found.update(CLASS.findall(text))
    return found


def docstrings_off(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return tree


def test_no_class_of_diffusers_is_named_outside() -> None:
    """No module outside models/families has a name or a string, docstrings apart, that is a class of diffusers."""
    named = {}
    for path in MODULES:
        place = str(path.relative_to(SOURCE))
        found = names_in(docstrings_off(ast.parse(path.read_text()))) - RETURNED.get(place, set())
        if found:
            named[place] = found
    assert named == {}


def test_nobody_asks_whether_something_is_video() -> None:
    """No module outside models/families, and no script of the page, compares with the word "video"."""
    asking = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.MatchValue) and any(
                isinstance(part, ast.Constant) and part.value == "video" for part in ast.walk(node)
            ):
                asking.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    for path in sorted(SOURCE.rglob("*.js")):
        if re.search(r"""[=!]==? *["']video["']""", path.read_text()):
            asking.append(str(path.relative_to(SOURCE)))
    assert asking == []
