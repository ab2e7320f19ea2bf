"""A story file: the scenes that every trial renders, each with its prompt and the seed of its noise."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from core.trial.spec import Scene, Story
from sweep.study.errors import Mistake, combined, parse
from sweep.study.plain_yaml import read_yaml
from sweep.study.setting import MAX_SEED, Section, Setting, check_template, text

MIN_SCENES = 8
SCENE = "{scene}"
NEGATIVE = Setting(kind=str, meaning="What the pictures must not show")


class SceneEntry(Section):
    """One picture of the story."""

    prompt: Annotated[str, text("What the picture shows, in Chinese or English")]
    seed: Annotated[int, Setting(kind=int, low=0, high=MAX_SEED, meaning="Seed of its noise, no two alike")]
    negative_prompt: Annotated[
        str | None,
        Setting(
            kind=str, optional=True, meaning="What it must not show, instead of the story's `negative_prompt`"
        ),
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
            raise Mistake(
                f"a story has {MIN_SCENES} scenes or more", f"{MIN_SCENES} or more scenes", value=scenes
            )
        first: dict[int, int] = {}
        mistakes = [
            Mistake(
                f"scenes[{first[scene.seed] + 1}] has it already",
                "each seed once",
                at=(i, "seed"),
                value=scene.seed,
            )
            for i, scene in enumerate(scenes)
            if first.setdefault(scene.seed, i) != i
        ]
        if mistakes:
            raise combined(mistakes)
        return scenes

    @property
    def value(self) -> Story:
        """The story as trials use it: template and default negative prompt are filled in."""
        return Story(
            title=self.title,
            scenes=tuple(
                Scene(
                    prompt=self.template.replace(SCENE, scene.prompt),
                    seed=scene.seed,
                    negative_prompt=self.negative_prompt
                    if scene.negative_prompt is None
                    else scene.negative_prompt,
                )
                for scene in self.scenes
            ),
        )


def load_story(file: Path) -> StoryFile:
    """Read one story file; a StudyError names what is wrong with it."""
    return parse(StoryFile, read_yaml(file), file)
