"""zsRE, whose edits are questions: as MEND and EasyEdit hold it, as MALMEN does, and KILT lines (zsRE and FEVER).

Levy et al. 2017 (https://arxiv.org/abs/1706.04115). MEND's form: Mitchell et al. 2022
(https://arxiv.org/abs/2110.11309), its portability question Yao et al. 2023 (https://arxiv.org/abs/2305.13172;
zjunlp/EasyEdit: easyeditor/dataset/zsre.py). MALMEN's: Tan et al. 2024 (https://arxiv.org/abs/2311.04661,
ChenmienTan/malmen: data/zsre.py, data/fever.py). KILT lines: De Cao et al. 2021 (https://arxiv.org/abs/2104.08164), and
MEND's data.
"""

import logging
from pathlib import Path

from errata.answers import normalise
from errata.data.fields import Excluded, Record, choice, make_edit, objects, optional_text, text, texts
from errata.data.formats import Format, MakeCase
from errata.types import Case, Probe

log = logging.getLogger(__name__)

TARGETS = ("alt", "answers")  # EasyEdit and MEND edit to a falsehood, ROME and MEMIT to the truth


def reader(path: Path | None, *, target: str = "alt") -> MakeCase:
    """Cases of MEND's form. ``target="answers"`` edits to the truth and ends the locality prompt in "?", as ROME.

    Portability questions are about what follows from ``alt``: of records edited to something else they are left out,
    which is logged.
    """
    to_alt = choice("target", target, TARGETS) == "alt"
    left_out = False

    def case(record: Record, id: str) -> Case:
        nonlocal left_out
        true = texts(record, "answers")
        if to_alt and record.get("alt") == "":
            raise Excluded("alt is empty, so there is nothing to edit to")
        new = text(record, "alt") if to_alt else text({"answers": true[0] if true else ""}, "answers")
        edit = make_edit(text(record, "src"), text(record, "subject"), new, true[0] if to_alt and true else None)
        accepted = (new,) if to_alt else true
        probes = [Probe("paraphrase", prompt, accepted) for prompt in texts(record, "rephrase")]
        question = optional_text(record, "portability.New Question")
        alt = normalise(optional_text(record, "alt") or "")
        if question and not to_alt and alt not in map(normalise, true):
            if not left_out:
                log.warning("zsRE's portability questions follow from alt: target=answers leaves them out")
            left_out = True
        elif question:
            probes.append(Probe("one_hop", question, texts(record, "portability.New Answer"), label="portability"))
        end = "" if to_alt else "?"
        probes += [Probe("unrelated", prompt + end, texts(record, "loc_ans")) for prompt in texts(record, "loc")]
        return Case(id, (edit,), tuple(probes))

    return case


def kilt_reader(path: Path | None, *, target: str = "alt") -> MakeCase:
    """Cases of KILT lines: zsRE, and FEVER (its answers are labels). The first of several alternatives is the target.

    ``filtered_rephrases`` are preferred to ``rephrases``: those on which the annotating model answers as on the input.
    """
    to_alt = choice("target", target, TARGETS) == "alt"

    def case(record: Record, id: str) -> Case:
        answers = (optional_text(output, "answer") for output in objects(record, "output"))
        true = tuple(answer for answer in answers if answer)
        alternatives = texts(record, "alternatives")
        if to_alt and not alternatives:
            raise Excluded("there are no alternatives, so there is nothing to edit to")
        new = alternatives[0] if to_alt else text({"output": true[0] if true else ""}, "output")
        subject, separator, _ = text(record, "input").partition(" [SEP] ")
        questions = texts(record, "meta.template_questions")
        if separator and not questions:
            raise Excluded("the input is 'subject [SEP] relation', and no question is given")
        prompt = questions[0] if separator else text(record, "input")
        edit = make_edit(prompt, subject if separator else None, new, true[0] if to_alt and true else None)
        rephrased = texts(record, "filtered_rephrases") or texts(record, "rephrases") or questions[1:]
        accepted = (new,) if to_alt else true
        return Case(id, (edit,), tuple(Probe("paraphrase", prompt, accepted) for prompt in rephrased))

    return case


def _malmen_case(record: Record, id: str) -> Case:
    """MALMEN's form, which names no subject; its locality prompt ends in "?"."""
    new = text(record, "ans")
    edit = make_edit(text(record, "src"), optional_text(record, "subject"), new)
    probes = [Probe("paraphrase", prompt, (new,)) for prompt in texts(record, "rephrase")]
    probes += [Probe("unrelated", prompt + "?", texts(record, "loc_ans")) for prompt in texts(record, "loc")]
    return Case(id, (edit,), tuple(probes))


def _fever_case(record: Record, id: str) -> Case:
    """MALMEN's FEVER: a claim, and the label that it shall get (SUPPORTS or REFUTES)."""
    new = text(record, "alt")
    probes = [Probe("paraphrase", prompt, (new,)) for prompt in texts(record, "equiv_prompt")]
    probes += [Probe("unrelated", prompt, texts(record, "unrel_ans")) for prompt in texts(record, "unrel_prompt")]
    return Case(id, (make_edit(text(record, "prompt"), None, new),), tuple(probes))


ZSRE = Format("src rephrase alt answers", reader, "subject pred loc loc_ans cond portability")
ZSRE_MALMEN = Format("src rephrase ans", lambda path: _malmen_case, "subject loc loc_ans")
FEVER_MALMEN = Format("prompt equiv_prompt alt", lambda path: _fever_case, "unrel_prompt unrel_ans")
KILT = Format("input output", kilt_reader, "id prediction alternatives rephrases filtered_rephrases meta logit")
