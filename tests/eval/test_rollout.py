from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
from planted import planted
from tiny_policies import NUM_STEPS, save_tiny_policy

import asd_policy
import envs
from eval.episodes import Episode, Experiment, Failure, Outcome
from eval.rollout import MakeEnv, RollingBatch

pytest_plugins = ["eval_fixtures"]

EPISODES = [Episode("refine:4", seed, repeat) for seed in (3, 4, 5) for repeat in (0, 1)]


def roll(
    experiment: Experiment,
    places: int,
    make_env: MakeEnv | None = None,
    episodes: Sequence[Episode] = EPISODES,
) -> dict[Episode, Outcome | Failure]:
    """The episodes through a batch of so many places."""
    policy = asd_policy.load_policy(experiment.checkpoint, device="cpu")
    make_env = make_env or partial(envs.make, experiment.task)
    batch = RollingBatch(policy, make_env, experiment.max_steps)
    waiting = list(episodes)

    def take(count: int) -> list[Episode]:
        return [waiting.pop(0) for _ in range(min(count, len(waiting)))]

    results = {result.episode: result for result in batch.run(take(places), take)}
    batch.close()
    return results


@pytest.fixture(scope="module")
def undisturbed(experiment: Experiment) -> dict[Episode, Outcome | Failure]:
    return roll(experiment, places=4)


def test_every_episode_runs_to_the_limit_and_counts_its_chunks(undisturbed):
    assert sorted(undisturbed) == sorted(EPISODES)
    for outcome in undisturbed.values():
        assert isinstance(outcome, Outcome)
        assert (outcome.steps, outcome.success, outcome.chunks) == (20, False, 3)
        assert 3 <= outcome.calls <= 30 and outcome.evaluations >= outcome.calls


def test_repeats_differ_from_each_other(undisturbed):
    """Of one seed; the seeds differ in any case."""
    evaluations = {episode: outcome.evaluations for episode, outcome in undisturbed.items()}
    pairs = [
        [evaluations[Episode("refine:4", seed, repeat)] for repeat in (0, 1)] for seed in (3, 4, 5)
    ]
    assert sum(first != second for first, second in pairs) >= 2


@pytest.mark.parametrize("places", [1, 3])
def test_outcomes_are_bit_identical_whatever_the_batch(experiment, undisturbed, places):
    assert roll(experiment, places) == undisturbed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise at reset", "RuntimeError: planted at reset"),
        ("raise at step", "RuntimeError: planted at step 10"),
        ("NaN observation", "ObservationError: agent_pos: expected finite"),
    ],
)
def test_a_fault_fails_its_own_episodes_and_no_other(experiment, undisturbed, fault, message):
    results = roll(experiment, places=3, make_env=planted(4, fault))
    for episode in EPISODES:
        if episode.seed == 4:
            failure = results[episode]
            assert isinstance(failure, Failure)
            assert message in failure.traceback and "Traceback" in failure.traceback
        else:
            assert results[episode] == undisturbed[episode]


def test_an_episode_stops_at_success(experiment, undisturbed):
    results = roll(experiment, places=6, make_env=planted(4, "success"))
    for episode in EPISODES:
        if episode.seed == 4:
            outcome = results[episode]
            assert isinstance(outcome, Outcome)
            assert (outcome.steps, outcome.success, outcome.reward) == (10, True, 1.0)
            assert outcome.chunks == 2
        else:
            assert results[episode] == undisturbed[episode]


@pytest.mark.sim
def test_robosuite_episodes_side_by_side_are_as_alone(tmp_path):
    folder = save_tiny_policy("lift", tmp_path / "lift", 1.0, 0.0)
    experiment = Experiment("lift", folder, {"action_mode": "delta"}, {}, NUM_STEPS, 10, "cpu")
    two = EPISODES[::3]
    alone, together = (roll(experiment, places, episodes=two) for places in (1, 2))
    assert sorted(alone) == two and alone == together
    assert all(isinstance(outcome, Outcome) for outcome in alone.values())
