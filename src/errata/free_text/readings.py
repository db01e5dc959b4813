"""A reading: one way in which a sentence can be meant as an edit."""

from dataclasses import dataclass

from errata.types import Edit


@dataclass(frozen=True)
class Reading:
    """An edit, the sentence that says it, and the rule by which it was found, in words."""

    edit: Edit
    sentence: str
    rule: str

    @property
    def words(self) -> str:
        """The edit on one line: the prompt with its subject in brackets, and the answers."""
        prompt = self.edit.template.replace("{}", f"[{self.edit.subject}]", 1)
        old = "" if self.edit.target_true is None else f" (not {self.edit.target_true})"
        return f"{prompt} → {self.edit.target_new}{old}"
