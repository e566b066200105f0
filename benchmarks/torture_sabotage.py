"""Plant bugs, one at a time, in a copy of the library, and see that a test turns red: green must mean something.

    python benchmarks/torture_sabotage.py [--small]

Each bug is a replacement in one file, and the tests that should notice. A bug whose place is no longer in the source
is an error of this script, not a bug that was caught.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from goals import leave, result

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bug:
    """A mistake that could happen.

    Attributes:
        name: what goes wrong.
        file: under src/fusemix.
        old: what stands there.
        new: what would stand there.
        tests: what pytest is given.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


BUGS = [
    Bug(
        "fsync of the file removed", "durable.py", "            os.fsync(file.fileno())\n", "", "tests/test_durable.py"
    ),
    Bug(
        "fsync of the folder removed", "durable.py", "        os.fsync(descriptor)\n", "        pass\n",
        "tests/test_durable.py",
    ),
    Bug(
        "rename before the write", "durable.py",
        '        with temporary.open("wb") as file:',
        '        temporary.touch()\n        temporary.replace(path)\n        with temporary.open("wb") as file:',
        "tests/test_durable.py",
    ),
    Bug(
        "no read back", "durable.py", "if not _holds(temporary, parts):", "if False:", "tests/test_durable.py"
    ),
    Bug(
        "an error of the disk swallowed", "durable.py",
        "        raise OSError(error.errno, error.strerror or type(error).__name__, str(path)) from error",
        "        pass",
        "tests/test_durable.py",
    ),
    Bug(
        "temporary files of living writers removed", "durable.py",
        "abandoned = int(pid) == os.getpid() or not _runs(int(pid))", "abandoned = True",
        "tests/test_durable.py",
    ),
    Bug(
        "a checkpoint without the optimiser", "training/run.py",
        '**{f"optimizer/{i}/{name}": value for i, state in optimizer.items() for name, value in state.items()},', "",
        "tests/test_resume.py",
    ),
    Bug(
        "the losses of a half epoch forgotten", "training/run.py",
        '        self.losses.copy_(tensors["losses"])\n', "", "tests/test_resume.py",
    ),
    Bug(
        "dropout that no seed decides", "training/step.py",
        "        torch.manual_seed(dropout_seed(self.config.seed, step, self.rank, side, place))\n", "",
        "tests/test_resume.py",
    ),
    Bug(
        "a signal tears an update apart", "training/run.py",
        "        with self.interrupts.held():\n            self.trainer.update(",
        "        if True:\n            self.trainer.update(",
        "tests/test_resume.py",
    ),
    Bug(
        "gradients that are NaN unnoticed", "training/step.py", " + 0 * nn.utils.get_total_norm(gradients)", "",
        "tests/test_resume.py",
    ),
    Bug(
        "a full memory shrinks the batch", "training/step.py", "        self.recompute = True\n", "",
        "tests/test_fit.py",
    ),
    Bug(
        "neighbours of a block meet neighbours", "training/order.py",
        "        rows[self.batch_size :] = rng.permutation(rows[self.batch_size :])\n", "", "tests/test_order.py",
    ),
    Bug(
        "gradients of the ranks not summed", "training/step.py",
        "                travelling.wait()\n", "                travelling.wait()\n            gradients[0].zero_()\n",
        "tests/test_fit_ranks.py",
    ),
    Bug(
        "a failed item left out of the report", "pipeline.py",
        "            failures.append(Failure(place, error.reason, str(error)))\n", "            pass\n",
        "tests/test_extract.py -k recorded",
    ),
    Bug(
        "failed items left out of failed.parquet", "extraction.py",
        "first[f.item] + 1) for f in failures]\n", "first[f.item] + 1) for f in failures[1:]]\n",
        "tests/test_extract.py -k recorded",
    ),
    Bug(
        "items shifted after a failed one", "pipeline.py",
        "[good[i] for i in ok], failures, halved)", "batch.places[: len(ok)], failures, halved)",
        "tests/test_shards.py -k 'not faulty'",
    ),
    Bug(
        "latents not put back in the order of the table", "shards.py",
        "    order = np.argsort(places)\n", "    order = np.arange(len(places))\n",
        "tests/test_shards.py -k 'not faulty'",
    ),
    Bug(
        "a damaged shard taken for sound", "data/store.py",
        "return committed == self._header(shard, content)", "return True",
        "tests/test_store.py",
    ),
    Bug(
        "a study chooses epochs on what it measures", "studies/trials.py",
        "        return cls(train.take(~chosen), train.take(chosen), measured)\n",
        "        return cls(train.take(~chosen), measured, measured)\n",
        "tests/test_studies_trials.py",
    ),
    Bug(
        "a lam for each modality", "training/order.py",
        'draw_lam(self.alpha, rng) if self.mixing == "separate" else lam\n', "draw_lam(self.alpha, rng)\n",
        "tests/test_mixup.py",
    ),
    Bug(
        "a pool goes on when what is outside may be better", "align/greedy.py",
        "(done and best <= outside + rounding)", "(done and best <= -1)",
        "tests/test_dpp.py",
    ),
    Bug(
        "batches that depend on what is missing", "shards.py",
        "    return deal(work.pipeline, list(work.store.items_of(shard)), work.store.facts.batch_size, shard)\n",
        "    places = list(work.store.items_of(shard))\n    places = places[shard:] + places[:shard]\n"
        "    return deal(work.pipeline, places, work.store.facts.batch_size, shard)\n",
        "tests/test_extract.py tests/test_shards.py -k 'not faulty'",
    ),
    Bug(
        "retrying keeps the latents of a batch that has changed", "shards.py",
        "    if rows.keys() != set(batch.places):\n        return None\n",
        "    if not rows.keys() <= set(batch.places):\n        return None\n",
        "tests/test_shards.py -k 'not faulty'",
    ),
    Bug(
        "canaries never looked at", "engines.py",
        "        if store.canaries is not None:", "        if False:",
        "tests/test_shards.py -k 'not faulty'",
    ),
    Bug(
        "the share of failures not counted", "shards.py",
        "    if len(early) <= max_failed * first:", "    if True:",
        "tests/test_shards.py -k 'not faulty'",
    ),
    Bug(
        "two ranks take the same shards", "engines.py",
        "mine = shards[rank::world]", "mine = list(shards)",
        "tests/test_engines.py -k ranks",
    ),
    Bug(
        "a shard that is never committed", "shards.py",
        "            if part.batch.last:", "            if part.batch.last and part.batch.shard:",
        "tests/test_shards.py -k faulty",
    ),
    Bug(
        "a decoder of the user's passed over in a search", "queries.py",
        "if self.side.decode is None else", "if True else",
        "tests/test_queries.py",
    ),
    Bug(
        "failures of other ranks not counted", "extraction.py",
        "            check_failures(job.items, max_failed, LatentStore.open(job.folder).failures)", "            pass",
        "tests/test_engines.py -k together",
    ),
    Bug(
        "a process that never ends because a decoder hangs", "data/decoding.py",
        "path_or_bytes(source)), daemon=True", "path_or_bytes(source)), daemon=False",
        "tests/test_decoding.py -k although",
    ),
    Bug(
        "truncated pictures pass", "data/images.py",
        '            check_image(file, image.format or "")\n', "",
        "tests/test_images.py",
    ),
    Bug(
        "equal scores in any order", "search/exact.py", "    if cut.any():\n", "    if False:\n",
        "tests/test_search_exact.py",
    ),
    Bug(
        "an index that is not held to its checksums", "search/folder.py",
        "if _sum(parts[name]) != wanted:", "if not wanted:",
        "tests/test_search_index.py",
    ),
    Bug(
        "pages of other sites let in", "server/guard.py", "and not _same(origin, host)", 'and origin == "null"',
        "tests/test_server.py -k doors",
    ),
    Bug(
        "a body that does not say how long it is", "server/guard.py", "        if count > headers.most:\n",
        "        if False:\n", "tests/test_server.py -k doors",
    ),
    Bug(
        "one bad query fails its whole batch", "server/batching.py",
        "        return [answer for ask in asks for answer in answer_all(index, [ask])]",
        "        return [error for _ in asks]",
        "tests/test_server.py -k batch",
    ),
    Bug(
        "the bias of hubs added", "align/hubness.py", "[gallery, -bias[:, None]", "[gallery, bias[:, None]",
        "tests/test_hubness.py",
    ),
    Bug(
        "items of the modality that asks corrected, too", "search/space.py",
        "if name != modality:", "if True:", "tests/test_search_hubs.py",
    ),
    Bug(
        "a network that does not begin as CCA", "align/adapters.py",
        "nn.init.zeros_(weight)", "nn.init.normal_(weight)", "tests/test_fuse.py",
    ),
    Bug(
        "an interrupted fit that forgets its epochs", "fit.py",
        "    if found is None:\n        cost", "    if True:\n        cost", "tests/test_minutes.py",
    ),
    Bug(
        "validations that take no time", "fit.py", "epochs * step + validations(epochs) * look > seconds",
        "epochs * step > seconds", "tests/test_minutes.py",
    ),
    Bug(
        "a space that moves towards the newcomer", "onto.py",
        "{**fused.adapters, onto.hub: onto.target.adapters[onto.hub]}", "dict(fused.adapters)", "tests/test_onto.py",
    ),
    Bug(
        "baselines of the target and not of the latents", "onto.py", "folds_of(onto.pairs, onto.config.seed)",
        "folds_of(onto.train, onto.config.seed)", "tests/test_onto.py",
    ),
    Bug(
        "a target that is centred", "align/closed_form.py", "shift_y=torch.zeros_like(form.shift_y)",
        "shift_y=form.shift_y", "tests/test_onto.py",
    ),
    Bug(
        "any two spaces taken for one", "align/adapters.py",
        "return alike and all(torch.equal(mine[name], theirs[name]) for name in mine)", "return True",
        "tests/test_onto.py",
    ),
    Bug(
        "shrinkage by the directions that are there", "align/closed_form.py",
        "shrinkage * covariance.diagonal().mean()",
        "shrinkage * values.mean()", "tests/test_closed_form.py",
    ),
    Bug(
        "a transport plan that leaves the columns", "align/transport.py",
        "scale_y = rows / columns / (scale_x @ kernel)", "scale_y = 0 * scale_y + 1 / (scale_x @ kernel).mean()",
        "tests/test_transport.py",
    ),
    Bug(
        "a fold judged by itself", "align/folds.py", "if i != fold]).moments()", "]).moments()", "tests/test_folds.py",
    ),
    Bug(
        "narrow blocks behind a map that blows up", "align/adapters.py",
        "nn.init.orthogonal_(map_.weight)", "nn.init.normal_(map_.weight)", "tests/test_adapters.py",
    ),
    Bug(
        "directions of the least correlation kept", "align/closed_form.py",
        "u, r, vt = u[:, :rank], r[:rank], vt[:rank]",
        "u, r, vt = u.flip(1)[:, :rank], r.flip(0)[:rank], vt.flip(0)[:rank]", "tests/test_closed_form.py",
    ),
    Bug(
        "one pooling of several", "encoders/pooling.py", "for word, layer in split(pooling)], dim=1)",
        "for word, layer in split(pooling)[:1]], dim=1)", "tests/test_pooling.py",
    ),
    Bug(
        "what is ahead by chance kept", "contest.py", "if ahead <= errors * noise", "if ahead <= 0",
        "tests/test_fuse.py",
    ),
    Bug(
        "captions of one picture taken for judges of their own", "contest.py", "np.bincount(places, gains -",
        "np.bincount(np.arange(len(gains)) % len(distinct), gains -", "tests/test_fuse.py",
    ),
    Bug(
        "a network tried that cannot catch up", "fuse.py", "lead(closed.ways[0], one, known, held)) > LEAD",
        "lead(closed.ways[0], one, known, held)) > 100", "tests/test_fuse.py",
    ),
    Bug(
        "the second network not foreseen", "fuse.py", "costs.append(foresee(", "print(foresee(", "tests/test_fuse.py",
    ),
    Bug(
        "held-out groups trained on", "fuse.py", "return train.take(~held), judges",
        "return train, judges", "tests/test_fuse.py",
    ),
    Bug(
        "items of a test split learned from", "unpaired.py", '("val", "test")', '("val",)', "tests/test_fuse.py",
    ),
    Bug(
        "the worst way chosen", "contest.py", "key=lambda i: -recalls[i][at[i]]", "key=lambda i: recalls[i][at[i]]",
        "tests/test_fuse.py",
    ),
    Bug(
        "what was held out left out for ever", "fuse.py", "if part is not train and", "if part is None and",
        "tests/test_fuse.py",
    ),
    Bug(
        "scores added without their spread", "contest.py",
        "[(1 - share) / self.spread(), share / other.spread()]", "[1 - share, share]", "tests/test_fuse.py",
    ),
    Bug(
        "a migration judged by what it was learned from", "migration.py", "Rotation.fit(a[~held], b[~held])",
        "Rotation.fit(a, b)", "tests/test_migration.py",
    ),
]  # fmt: skip


def main() -> None:
    """Plant and print a RESULT line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="only the first three bugs")
    bugs = BUGS[:3] if parser.parse_args().small else BUGS
    caught = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in ("src", "tests", "benchmarks", "recipes", "pyproject.toml", "README.md"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        for tests in dict.fromkeys(bug.tests for bug in bugs):
            if run(copy, tests):
                raise SystemExit(f"{tests} is red without any bug: nothing can be learned from it")
        for bug in bugs:
            red = plant(copy, bug)
            caught += red
            print(f"# {'caught' if red else 'NOT CAUGHT'}: {bug.name}", flush=True)
    least = min(8, len(bugs))
    result(
        "planted bugs that turn a test red", f"{caught} of {len(bugs)}", f"all, at least {least}",
        lambda _: caught == len(bugs) >= least,
    )  # fmt: skip


def plant(copy: Path, bug: Bug) -> bool:
    """Plant one bug, run its tests, take it out again; tell whether they failed."""
    path = copy / "src" / "fusemix" / bug.file
    whole = path.read_text()
    if whole.count(bug.old) != 1:
        raise SystemExit(f"{bug.name}: its place is not, or not once, in {bug.file}; mend this script")
    path.write_text(whole.replace(bug.old, bug.new))
    try:
        return run(copy, bug.tests)
    finally:
        path.write_text(whole)


def run(copy: Path, tests: str) -> bool:
    """Run tests on the copy; tell whether one is red."""
    # Of the plugins that happen to be installed, and take seconds, the settings need one.
    env = {
        **os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n0", *shlex.split(tests)]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=600)
    if done.returncode not in (0, 1):  # 1 is a red test; an error of collection would prove nothing
        raise SystemExit(f"{tests}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.returncode == 1


if __name__ == "__main__":
    main()
    leave()
