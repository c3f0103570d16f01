"""Changes that would harm users' data or counts, and the tests that have to notice each.

Each is one place of the code that guards something, made not to. `python -m tests.mutation.run`
applies them one by one to a copy of the package.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Parameters
    ----------
    guards : str
        What goes wrong without it.
    file : str
        Below ``qpnuclei/``.
    old, new : str
        What is replaced; `old` is there once.
    tests : str
        What pytest is given: files, and ``-k`` expressions.
    """

    guards: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_NATIVE = "tests/qupath/test_native.py"

MUTANTS = (
    # Saving
    Mutant(
        "what a user has locked is replaced",
        "pipeline/planning/image_plan.py",
        " - self.locked.rows",
        "",
        ("tests/pipeline/commit/test_locked.py", "-k", "stay_and_nothing"),
    ),
    Mutant(
        "more changes than was asked for",
        "qupath/native.py",
        "if _digest(data_file) != kept:",
        "if False:",
        (_NATIVE, "-k", "more_changed"),
    ),
    Mutant(
        "bytes on the disk are not those written",
        "qupath/native.py",
        "if digest_of(data) != digest:",
        "if False:",
        (_NATIVE, "-k", "does_not_read_back"),
    ),
    Mutant(
        "what someone saved since it was read is overwritten",
        "qupath/native.py",
        "            self._check_unchanged(fingerprint)\n",
        "",
        (_NATIVE, "-k", "conflict"),
    ),
    Mutant(
        "no backup of what is replaced",
        "qupath/native.py",
        "with kept_backup(self.data_path):\n                transaction.commit()",
        "with contextlib.nullcontext():\n                transaction.commit()",
        (_NATIVE, "-k", "backups_hold"),
    ),
    Mutant(
        "no backup of what is replaced by an older state",
        "qupath/native.py",
        "with kept_backup(self.data_path):\n                    transaction.commit()",
        "with contextlib.nullcontext():\n                    transaction.commit()",
        ("tests/qupath/test_backups.py",),
    ),
    Mutant(
        "half of the files are replaced when one cannot be",
        "qupath/transaction.py",
        "        except OSError as error:\n            self._undo()\n",
        "        except OSError as error:\n",
        (_NATIVE, "-k", "failure_at_any_step"),
    ),
    Mutant(
        "Ctrl-C between two renames leaves half of the files replaced",
        "qupath/transaction.py",
        "except BaseException:  # an interrupt, not postponed\n            self._undo()\n",
        "except BaseException:\n",
        (_NATIVE, "-k", "between_renames"),
    ),
    Mutant(
        "Ctrl-C does not wait for the last rename",
        "qupath/transaction.py",
        "        with interrupt_postponed():\n            self._commit()\n",
        "        self._commit()\n",
        ("tests/qupath/test_transaction.py", "-k", "ctrl_c"),
    ),
    Mutant(
        "temporary files of a save in progress are removed",
        "qupath/transaction.py",
        "> LEFTOVER_AGE_S",
        "> -1",
        (_NATIVE, "-k", "leftovers"),
    ),
    Mutant(
        "two programs save into one project at once",
        "system/locks.py",
        "return whole.stat().st_nlink == 2",
        "return True",
        ("tests/system/test_locks.py", "-k", "refused"),
    ),
    Mutant(
        "all backups but one are dropped",
        "qupath/backups.py",
        "backups[BACKUP_COUNT:]",
        "backups[1:]",
        ("tests/qupath/test_backups.py", _NATIVE, "-k", "backup"),
    ),
    Mutant(
        "a backup that is not whole has the name of one",
        "qupath/backups.py",
        "        copy_durably(source, partial)\n        partial.replace(target)\n",
        "        copy_durably(source, target)\n",
        ("tests/qupath/test_backups.py", "-k", "whole_or_not"),
    ),
    # What is removed
    Mutant(
        "detections of others are removed",
        "qupath/qpdata/data_file.py",
        "for row in rows if not detections.ours[row]",
        "for row in rows if False",
        (_NATIVE, "-k", "not_ours"),
    ),
    Mutant(
        "what is nested below a detection is removed with it",
        "qupath/qpdata/hierarchy.py",
        "                children += PathObject.of(child).children\n",
        "                pass\n",
        (_NATIVE, "-k", "nested_below"),
    ),
    Mutant(
        "one UUID is there twice",
        "qupath/qpdata/data_file.py",
        "            check_free(self._root(), ids, self._source)\n",
        "",
        (_NATIVE, "-k", "never_there_twice"),
    ),
    Mutant(
        "UUIDs of others are taken for ours",
        "nuclei/ids.py",
        " and detection_id.int & _MARK_BITS == _MARK",
        "",
        ("tests/nuclei/test_ids.py",),
    ),
    Mutant(
        "detections outside of the annotation are removed",
        "pipeline/selection.py",
        "frozenset(ours[rows].tolist()) for rows in held",
        "frozenset(ours.tolist()) for rows in held",
        ("tests/pipeline", "tests/cli/test_run.py", "-k", "existing or within or replace"),
    ),
    # What is counted
    Mutant(
        "of two equally large views of a nucleus both are counted",
        "tiling/stitch.py",
        "loses = (mine < theirs) | ((mine == theirs) & (tile.index > neighbour.index))",
        "loses = mine < theirs",
        ("tests/tiling/test_stitch.py", "-k", "equally_large"),
    ),
    Mutant(
        "a nucleus that two tiles see differently is counted twice",
        "tiling/stitch.py",
        "stays = ~dropped & self._plan",
        "stays = self._plan",
        ("tests/tiling/test_stitch.py", "-k", "differently"),
    ),
    Mutant(
        "nuclei around the region are counted",
        "tiling/stitch.py",
        "stays = ~dropped & self._plan.answers_for(own.nuclei.centroids())",
        "stays = ~dropped",
        ("tests/tiling/test_stitch.py", "-k", "halo or region_of_interest"),
    ),
    Mutant(
        "nuclei at the border of a region depend on the tile size",
        "pipeline/planning/tiles.py",
        "_MARGIN_PX = 2",
        "_MARGIN_PX = 0",
        ("tests/pipeline/inference/test_borders.py", "-k", "smoothing"),
    ),
    Mutant(
        "slides 20 % off the model's resolution are not resampled",
        "slides/resolution.py",
        "NATIVE_TOLERANCE = 0.10",
        "NATIVE_TOLERANCE = 0.20",
        ("tests/slides/test_resolution.py",),
    ),
    Mutant(
        "a nucleus belongs to the largest of nested annotations",
        "qupath/regions.py",
        "key=lambda i: -regions[i].geometry.area",
        "key=lambda i: regions[i].geometry.area",
        ("tests/pipeline", "tests/qupath/test_counts.py", "-k", "smallest or innermost or nested"),
    ),
)
