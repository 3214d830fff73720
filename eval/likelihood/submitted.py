"""Scores that another program has written in ZeroSpeech's submission format, measured like a model.

eval-run --model scores:SUBMISSION --corpus sLM21-dataset --out results
"""

from __future__ import annotations

from pathlib import Path

from eval.likelihood.pairs import Suite
from eval.likelihood.zerospeech import read_submission
from eval.test_set import NotMeasured
from speechgpt.answers import Likelihood, Sound
from units.runtime.provenance import digest

KIND = "scores:"


class SubmittedScores:
    """A folder of a submission: lexical/dev.txt, syntactic/dev.txt, english_dev.txt, ...

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no submission at {self.folder}; it is a folder with lexical/dev.txt, ..")

    @property
    def name(self) -> str:
        """The folder's name, and a hash of its scores."""
        files = sorted(self.folder.rglob("*.txt"))
        content = (part for path in files for part in (f"{path.relative_to(self.folder)}\n", path.read_bytes()))
        return f"{self.folder.name} {digest(content)}"

    def likelihoods(self, sounds: list[Sound]) -> list[Likelihood]:
        """Raises NotMeasured: only sounds of a suite have a score."""
        raise NotMeasured(f"{self.folder} has scores of whole suites alone")

    def scores(self, suite: Suite) -> dict[str, Likelihood]:
        """The scores of a suite, as if each sound had one token.

        Raises:
            NotMeasured: the submission has no file for this suite.
            SuiteError: the file does not fit the suite.
        """
        path = self.folder / suite.submission
        if not suite.submission or not path.is_file():
            raise NotMeasured(f"{self.folder} has no {suite.submission or f'scores of {suite.name}'}")
        return read_submission(path, suite)
