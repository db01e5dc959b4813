"""Texts as targets: chunks, the search over them, the two solvers, and how a recalled text is measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, quick, tiny_lm
from test_evaluate import Scripted  # noqa: F401  (a model that answers by a script)

import errata
