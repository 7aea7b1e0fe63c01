"""The tracks that there are, chosen by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqbench.cell.features_track import FeaturesTrack
from vqbench.cell.images_track import ImagesTrack
from vqbench.cell.track import Track
from vqbench.recipe import Recipe
from vqbench.results.cell_files import track_name

TRACKS: Mapping[str, Track] = {track.name: track for track in (ImagesTrack(), FeaturesTrack())}


def track_of(recipe: Recipe) -> Track:
    """The track of a recipe."""
    return TRACKS[recipe.track]


def track_of_spec(spec: Mapping[str, Any]) -> Track:
    """The track of a cell, by its spec."""
    return TRACKS[track_name(spec)]
