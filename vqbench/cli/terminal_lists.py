"""What there is, on stdout: methods, datasets, recipes, and the fields of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vqbench.cli.terminal import Columns, make_console
from vqbench.registry import METHODS, METRICS, Outline

if TYPE_CHECKING:
    from vqbench.recipe import Recipe


def print_outlines(kind: str, outlines: list[Outline], with_components: bool) -> None:
    """Plugins of one kind, one row each; a broken one says why."""
    titles = ("paper", "components", "origin") if with_components else ("origin",)
    table = Columns((kind, "what", *titles))
    for outline in outlines:
        summary = Text(f"broken: {outline.problem}", style="red") if outline.problem else Text(outline.summary)
        more = (outline.paper, ", ".join(outline.components) or "–", outline.origin)
        table.add(Text(outline.name), summary, *map(Text, more if with_components else more[-1:]))
    table.print(make_console())


def print_metrics() -> None:
    """The metrics, one row each; a broken one says why."""
    from vqbench.errors import UsageError
    from vqbench.metrics.definitions import metric

    table = Columns(("metric", "title", "what", "origin"))
    for name in METRICS.names():
        outline = METRICS.outline(name)
        try:
            known = metric(name)
            what = Text(known.gloss or outline.summary)
            table.add(Text(name), Text(known.head), what, Text(outline.origin))
        except UsageError as error:
            table.add(Text(name), Text("–"), Text(f"broken: {error.what}", style="red"), Text(outline.origin))
    table.print(make_console())


def print_recipes(recipes: list[Recipe]) -> None:
    """The shipped recipes, one row each."""
    table = Columns(("recipe", "px", "tokens", "images", "batch", "K", "d", "perceptual", "GAN"))
    for r in recipes:
        side = r.resolution // r.downsampling
        numbers = (r.resolution, f"{side}×{side}", f"{r.images:,}", r.batch_size, r.codebook_size, r.codebook_dim)
        table.add(r.name, *map(str, numbers), r.perceptual, r.gan)
    table.print(make_console())


def _print_fields(cls: type, values: dict[str, Any]) -> None:
    from vqbench.config import describe

    table = Columns(("field", "type", "default", "meaning"))
    for field in describe(cls):
        default = values.get(field.name, field.default)
        meaning = field.meaning + (" (The paper leaves it open.)" if field.unspecified else "")
        table.add(*(Text(str(x)) for x in (field.name, field.type, default, meaning)))
    table.print(make_console())


def print_recipe(name: str) -> None:
    """Every field of a recipe with its value."""
    from vqbench.config import as_dict
    from vqbench.recipe import Recipe, load_recipe

    _print_fields(Recipe, as_dict(load_recipe(name)))


def print_method(name: str) -> None:
    """A method's paper, fields, components and presets."""
    from vqbench.config import components
    from vqbench.metrics.definitions import DEFINITIONS
    from vqbench.planning.paper import published_numbers

    console, cls, outline = make_console(), METHODS.get(name), METHODS.outline(name)
    published_numbers(cls, name, None)  # refuses what makes no sense, before anything is printed
    console.print(Text(outline.summary or name))
    console.print(Text(f"from {outline.origin}\n"))
    _print_fields(cls.Config, {})
    dropped = components(cls.Config)
    listed = ", ".join(f"{component} (field {field})" for component, field in dropped.items()) or "none"
    console.print(Text(f"\ncomponents that can be dropped: {listed}"))
    if cls.paper_rows:
        rows = ", ".join(f"{row.name} ({' + '.join(sorted(row.components)) or 'all off'})" for row in cls.paper_rows)
        console.print(Text(f"rows of the paper: {rows}"))
    for number in cls.published:
        forms = ", ".join(f"{name}@{preset}" if preset else name for preset in number.presets)
        value = f"{DEFINITIONS[number.metric].title} {number.value:g}"
        console.print(Text(f"published for {forms}: {value} on {number.measured_on} ({number.source})"))
    for field, domain in cls.search_space.items():
        from vqbench.sweeps.spaces import make_parameter

        parameter = make_parameter(name, cls.Config, field, domain, f"vqbench show {name}")
        console.print(Text(f"declares for sweeps ({domain.group or 'no group'}): {field} in {parameter.describe()}"))
    for preset, values in cls.presets.items():
        settings = ", ".join(f"{key}={value}" for key, value in values.items())
        console.print(Text(f"preset {name}@{preset}: {settings}"))
