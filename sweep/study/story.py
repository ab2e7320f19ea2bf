"""A story file: the scenes that every trial renders, each with its prompt and the seed of its noise."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from core.trial.spec import Scene, Story
from sweep.study.errors import Mistake, Origin, combined, parse
from sweep.study.plain_yaml import read_yaml
from sweep.study.setting import MAX_SEED, Section, Setting, check_template, text

MIN_SCENES = 8
SCENE = "{scene}"
NEGATIVE = Setting(str, "What the images must not show")


class SceneEntry(Section):
    """One image of the story."""

    prompt: Annotated[str, text("What the image shows, in Chinese or English")]
    seed: Annotated[int, Setting(int, "Seed of its noise, no two alike", high=MAX_SEED)]
    negative_prompt: Annotated[
        str | None,
        Setting(str, "What it must not show, instead of the story's `negative_prompt`", optional=True),
    ] = None


class StoryFile(Section):
    """Eight or more prompts that are one tale, and the template around them."""

    title: Annotated[str, text("The story's title, for reports")]
    template: Annotated[
        str, text("Text around every scene; `{scene}` stands for its prompt; other braces are refused")
    ] = SCENE
    negative_prompt: Annotated[str, NEGATIVE] = ""
    scenes: tuple[SceneEntry, ...] = Field(
        description=f"{MIN_SCENES} or more scenes, in the order of the tale"
    )

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        check_template(template, SCENE, f"text with {SCENE}")
        if SCENE not in template:
            raise Mistake("no scene would be drawn", f"text with {SCENE}")
        return template

    @field_validator("scenes")
    @classmethod
    def _check_scenes(cls, scenes: tuple[SceneEntry, ...]) -> tuple[SceneEntry, ...]:
        if len(scenes) < MIN_SCENES:
            allowed = f"{MIN_SCENES} or more scenes"
            raise Mistake(f"a story has {MIN_SCENES} scenes or more", allowed, value=scenes)
        seeds = [scene.seed for scene in scenes]
        mistakes = [
            Mistake(f"scenes[{first + 1}] has it already", "each seed once", at=(i, "seed"), value=seed)
            for i, seed in enumerate(seeds)
            if (first := seeds.index(seed)) != i
        ]
        if mistakes:
            raise combined(mistakes)
        return scenes

    @property
    def value(self) -> Story:
        """The story as trials use it: template and default negative prompt are filled in."""
        default = self.negative_prompt
        scenes = tuple(
            Scene(
                prompt=self.template.replace(SCENE, scene.prompt),
                negative_prompt=default if scene.negative_prompt is None else scene.negative_prompt,
                seed=scene.seed,
            )
            for scene in self.scenes
        )
        return Story(title=self.title, scenes=scenes)


def load_story(file: Path) -> StoryFile:
    """Read one story file; a StudyError names what is wrong with it."""
    return parse(StoryFile, read_yaml(file), Origin(file))
