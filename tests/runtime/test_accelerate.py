"""Live policies of other libraries: their loops, with ASD inside."""

from __future__ import annotations

import copy
import functools
import sys
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from golden import fixture, golden, largest
from torch import nn

import asd_policy
from asd_policy.errors import CheckpointError, PlanningError, SamplerError
from asd_policy.networks import ConditionalUnet1D
from asd_policy.runtime import accelerate as module

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

HORIZON, DIM = 8, 2


class Network(nn.Module):
    """Chi's signature around our U-Net."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.unet = ConditionalUnet1D(DIM, 3, 8, (8, 16), 3, 4)
        self.calls = 0

    def forward(self, sample, timestep, local_cond=None, global_cond=None, **_):
        self.calls += 1
        timestep = torch.as_tensor(timestep).expand(len(sample))
        return self.unet(sample, timestep, global_cond)


class Plain(nn.Module):
    """A network that can be of any precision."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, sample, timestep, local_cond=None, global_cond=None):
        return self.layer(sample)


def scheduler(kind="DDPMScheduler", **options):
    return getattr(diffusers, kind)(20, beta_schedule="squaredcos_cap_v2", **options)


class DiffusionPolicyLike:
    """The loop of diffusion_policy's ``conditional_sample``."""

    obs_as_global_cond = True

    def __init__(self, noise_scheduler):
        self.model, self.noise_scheduler = Network().eval(), noise_scheduler
        self.num_inference_steps = 20
        self.kwargs = {}

    @torch.no_grad()
    def conditional_sample(self, cond, generator=None):
        trajectory = torch.randn((len(cond), HORIZON, DIM), generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            output = self.model(trajectory, t, local_cond=None, global_cond=cond)
            trajectory = self.noise_scheduler.step(
                output, t, trajectory, generator=generator, **self.kwargs
            ).prev_sample
        return trajectory


class LeRobotLike:
    """The loop of LeRobot's ``DiffusionModel``, inside its policy."""

    class Model:
        def __init__(self, noise_scheduler):
            self.unet, self.noise_scheduler = Network().eval(), noise_scheduler

        @torch.no_grad()
        def conditional_sample(self, cond, generator=None):
            sample = torch.randn((len(cond), HORIZON, DIM), generator=generator)
            self.noise_scheduler.set_timesteps(20)
            for t in self.noise_scheduler.timesteps:
                times = torch.full(sample.shape[:1], t, dtype=torch.long)
                output = self.unet(sample, times, global_cond=cond)
                sample = self.noise_scheduler.step(
                    output, t, sample, generator=generator
                ).prev_sample
            return sample

    def __init__(self, noise_scheduler):
        self.diffusion = self.Model(noise_scheduler)
        self.conditional_sample = self.diffusion.conditional_sample


class RobomimicLike:
    """The loop of robomimic's algorithm: it names the network's arguments, and has an average."""

    def __init__(self, noise_scheduler):
        raw, average = ({"policy": {"noise_pred_net": Network().eval()}} for _ in range(2))
        self.nets, self.noise_scheduler = raw, noise_scheduler
        self.ema = type("Average", (), {"averaged_model": average})()

    @torch.no_grad()
    def _get_action_trajectory(self, cond, generator=None):
        naction = torch.randn((len(cond), HORIZON, DIM), generator=generator)
        self.noise_scheduler.set_timesteps(20)
        for k in self.noise_scheduler.timesteps:
            output = self.ema.averaged_model["policy"]["noise_pred_net"](
                sample=naction, timestep=k, global_cond=cond
            )
            naction = self.noise_scheduler.step(
                model_output=output, timestep=k, sample=naction, generator=generator
            ).prev_sample
        return naction

    conditional_sample = _get_action_trajectory


LIKE = [DiffusionPolicyLike, LeRobotLike, RobomimicLike]


def draw(policy, seed, rows=3):
    condition = torch.linspace(-1, 1, 3 * rows).view(rows, 3)
    return policy.conditional_sample(condition, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("like", LIKE)
def test_ddpm_through_the_stand_in_is_their_own_loop(like):
    policy = like(scheduler())
    # Of one row, the noise of all steps drawn at once is what the loop draws step by step.
    own = draw(policy, 5, rows=1)
    with asd_policy.accelerate(policy, "ddpm") as accelerated:
        ours = draw(policy, 5, rows=1)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    assert accelerated.last.calls == [20]
    assert torch.equal(draw(policy, 5, rows=1), own)


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("sampler", ["ddpm", "asd", "asd-paper:8"])
def test_the_distribution_is_theirs(like, sampler):
    policy = like(scheduler())
    rows = 1000
    condition = torch.tensor([[0.3, -0.5, 0.8]]).expand(rows, 3)

    def chunks(seed):
        return policy.conditional_sample(condition, torch.Generator().manual_seed(seed)).flatten(1)

    own = chunks(1)
    with asd_policy.accelerate(policy, sampler):
        ours = chunks(2)
    error = (own.var(0) / rows + ours.var(0) / rows).sqrt()
    assert ((own.mean(0) - ours.mean(0)).abs() / error).max() < 4.5
    assert (own.std(0) / ours.std(0) - 1).abs().max() < 0.15


@pytest.mark.parametrize("like", LIKE)
def test_seeds_decide_and_calls_fall(like):
    policy = like(scheduler())
    with asd_policy.accelerate(policy, "asd-paper:8") as accelerated:
        first, again, other = draw(policy, 7), draw(policy, 7), draw(policy, 8)
        assert max(accelerated.last.calls) < 20
        assert accelerated.seconds > 0
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_of_the_generator_alone():
    """Block verification draws a chain's noise anew, from the same generator."""
    policy = DiffusionPolicyLike(scheduler())
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with asd_policy.accelerate(policy, "asd-paper+block:8"):
            drawn.append(draw(policy, 7))
    assert torch.equal(*drawn)


def test_a_network_of_another_precision_is_asked_in_its_own():
    policy = DiffusionPolicyLike(scheduler())
    policy.model = Plain().bfloat16()
    with asd_policy.accelerate(policy, "asd-paper:8") as accelerated:
        trajectory = torch.randn((3, HORIZON, DIM), dtype=torch.bfloat16)
        policy.noise_scheduler.set_timesteps(20)
        for t in policy.noise_scheduler.timesteps:
            output = policy.model(trajectory, t)
            trajectory = policy.noise_scheduler.step(output, t, trajectory).prev_sample
    assert trajectory.dtype == torch.bfloat16 and accelerated.last is not None


def test_ddim_is_replaced_by_the_ddpm_that_it_abbreviates():
    policy = DiffusionPolicyLike(scheduler("DDIMScheduler"))
    policy.num_inference_steps, policy.kwargs = 5, {"eta": 0}
    with asd_policy.accelerate(policy, "ddpm") as accelerated:
        draw(policy, 1)
    assert accelerated.last.calls == [20] * 3


@pytest.mark.parametrize(
    ("kind", "options", "steps", "message"),
    [
        ("EulerDiscreteScheduler", {}, 20, "expected DDPMScheduler or DDIMScheduler, got 'Euler"),
        ("UniPCMultistepScheduler", {}, 20, "got 'UniPCMultistepScheduler', which samples another"),
        ("DDPMScheduler", {"timestep_spacing": "trailing"}, 10, "timestep_spacing 'leading'"),
        ("DDPMScheduler", {"timestep_spacing": "linspace"}, 10, "timestep_spacing 'leading'"),
        ("DDPMScheduler", {"steps_offset": 1}, 10, "steps_offset 0, got 'leading' and 1"),
    ],
)
def test_other_processes_are_refused(kind, options, steps, message):
    policy = DiffusionPolicyLike(scheduler(kind, **options))
    policy.num_inference_steps = steps
    with asd_policy.accelerate(policy), pytest.raises(CheckpointError, match=message):
        draw(policy, 1)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_all_steps_are_the_same_however_spaced(spacing):
    policy = DiffusionPolicyLike(scheduler(timestep_spacing=spacing))
    own = draw(policy, 5, rows=1)
    with asd_policy.accelerate(policy, "ddpm"):
        torch.testing.assert_close(draw(policy, 5, rows=1), own, atol=1e-5, rtol=0)


def test_an_accelerated_policy_can_be_copied():
    policy = DiffusionPolicyLike(scheduler())
    with asd_policy.accelerate(policy, "asd-paper:8"):
        twin = copy.deepcopy(policy)
        assert torch.equal(draw(twin, 3), draw(policy, 3))


class WithEpisodes(DiffusionPolicyLike):
    n_action_steps = 3

    def reset(self):
        return "own"


def test_drafts_begin_from_the_chunk_before_until_an_episode_ends(monkeypatch):
    begun = []
    honest = module._sample

    def watched(denoise, chain, noise, sampler, prior):
        begun.append(prior.previous)
        return honest(denoise, chain, noise, sampler, prior)

    monkeypatch.setattr(module, "_sample", watched)
    policy = WithEpisodes(scheduler())
    with asd_policy.accelerate(policy):
        first, second = draw(policy, 1, rows=2), draw(policy, 2, rows=2)
        draw(policy, 3, rows=1)
        assert policy.reset() == "own"
        assert torch.equal(draw(policy, 1, rows=2), first)  # seeds decide an episode
        assert torch.equal(draw(policy, 2, rows=2), second)
    assert begun[0] is None and begun[2] is None and begun[3] is None  # begun, other rows, begun
    torch.testing.assert_close(begun[1][0][:-3], first[0][3:])
    assert torch.equal(begun[4][1], begun[1][1])
    assert policy.reset() == "own" and "reset" not in vars(policy)


def test_without_a_reset_nothing_is_kept_between_chunks():
    policy = DiffusionPolicyLike(scheduler())
    with asd_policy.accelerate(policy):
        assert torch.equal(draw(policy, 1), draw(policy, 1))


def test_a_gain_is_of_this_policy(calibrated_folder):
    gain = asd_policy.load_policy(calibrated_folder, device="cpu").planner.gain
    policy = DiffusionPolicyLike(scheduler())
    with pytest.raises(TypeError, match="expected a Gain, as .* got str"):
        asd_policy.accelerate(policy, gain=str(calibrated_folder))
    with asd_policy.accelerate(policy, gain=gain):
        with pytest.raises(PlanningError, match="20 steps and chunks of 16 numbers, got 20 and 48"):
            draw(policy, 1)


@pytest.mark.parametrize("sampler", ["asd:auto", "speculative-independent:4"])
def test_what_a_live_policy_lacks_is_said_at_once(sampler):
    with pytest.raises(SamplerError, match="measured costs or a draft network"):
        asd_policy.accelerate(DiffusionPolicyLike(scheduler()), sampler)


def test_restoring_leaves_no_trace():
    policy = DiffusionPolicyLike(scheduler())
    own, names = policy.noise_scheduler, set(policy.model.__dict__)
    accelerated = asd_policy.accelerate(policy)
    draw(policy, 1)
    assert policy.noise_scheduler is not own
    assert policy.noise_scheduler.config["num_train_timesteps"] == 20  # what it had, it has
    accelerated.restore()
    accelerated.restore()
    assert policy.noise_scheduler is own
    assert set(policy.model.__dict__) == names


def test_a_loop_that_breaks_off_leaves_the_network_whole():
    policy = DiffusionPolicyLike(scheduler())
    with asd_policy.accelerate(policy):
        policy.noise_scheduler.set_timesteps(20)
    output = policy.model(torch.ones(1, HORIZON, DIM), 3, global_cond=torch.ones(1, 3))
    assert output.abs().sum() > 0


def test_a_loop_of_another_kind_is_an_error():
    policy = DiffusionPolicyLike(scheduler())
    with asd_policy.accelerate(policy), pytest.raises(PlanningError, match="not a sampling loop"):
        policy.noise_scheduler.step(torch.zeros(1, 2, 2), 3, torch.zeros(1, 2, 2))


def test_twice_is_an_error():
    policy = DiffusionPolicyLike(scheduler())
    with asd_policy.accelerate(policy), pytest.raises(TypeError, match="already"):
        asd_policy.accelerate(policy)


@pytest.mark.parametrize("policy", [object(), nn.Linear(2, 2), "policy"])
def test_what_is_no_policy_is_named(policy):
    with pytest.raises(TypeError, match=f"got {type(policy).__name__}"):
        asd_policy.accelerate(policy)


def test_inpainting_is_refused():
    policy = DiffusionPolicyLike(scheduler())
    policy.obs_as_global_cond = False
    with pytest.raises(TypeError, match="inpaints"):
        asd_policy.accelerate(policy)


def test_lerobots_own_policy():
    modeling = pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion")
    folder = fixture("lerobot_033_state/pretrained_model")
    policy = modeling.DiffusionPolicy.from_pretrained(str(folder)).eval()
    keys = ("observation.state", "observation.environment_state")
    arrays = golden("lerobot_033_state/golden_diffusers0352.npz")
    frame = {key: arrays[f"raw_obs.{key}"][:, 0] for key in keys}

    def act():
        policy.reset()
        torch.manual_seed(0)
        return policy.select_action(frame)

    own = act()
    with asd_policy.accelerate(policy, "asd-paper:24") as accelerated:
        ours = act()
        assert ours.shape == own.shape
        assert max(accelerated.last.calls) < 100
    assert torch.equal(act(), own)


@contextmanager
def injected(monkeypatch, *chunk):
    """Normal numbers from a table: those that a loop draws one by one, ours takes together."""
    table = torch.randn(101, 1, *chunk, generator=torch.Generator().manual_seed(0))
    drawn = iter(table)

    def randn(*sizes, **options):
        size = options.get("size", sizes[0] if sizes else None)
        return table[1:].movedim(1, 0) if len(size) == 4 else next(drawn)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", randn)
        yield


def samples_as_itself_and_in_fewer_calls(policy, act, monkeypatch, *chunk):
    torch.manual_seed(0)
    own = act()
    with injected(monkeypatch, *chunk):
        expected = act()
    with asd_policy.accelerate(policy, "ddpm"):
        with injected(monkeypatch, *chunk):
            assert largest(act(), expected) < 1e-4
    with asd_policy.accelerate(policy, "asd-paper:24") as accelerated:
        assert act().shape == own.shape
        assert max(accelerated.last.calls) < 100
    torch.manual_seed(0)
    assert torch.equal(act(), own)


@pytest.mark.parametrize("name", ["chi_transformer_lowdim_square", "chi_unet_lowdim_pusht"])
def test_diffusion_policys_own_policy(name, monkeypatch):
    pytest.importorskip("diffusion_policy.policy.base_lowdim_policy")
    dill, hydra = pytest.importorskip("dill"), pytest.importorskip("hydra")
    # Our own fixture, read as its project reads it.
    omegaconf = pytest.importorskip("omegaconf")
    omegaconf.OmegaConf.register_new_resolver("eval", eval, replace=True)
    payload = torch.load(fixture(f"{name}/{name}.ckpt"), pickle_module=dill, weights_only=False)
    policy = hydra.utils.instantiate(payload["cfg"].policy).eval()
    policy.load_state_dict(payload["state_dicts"]["ema_model"])
    seen = {"obs": torch.full((1, policy.n_obs_steps, policy.obs_dim), 0.1)}

    def act():
        with torch.no_grad():
            return policy.predict_action(seen)["action_pred"]

    chunk = policy.horizon, policy.action_dim
    samples_as_itself_and_in_fewer_calls(policy, act, monkeypatch, *chunk)


def test_robomimics_own_policy(monkeypatch):
    pytest.importorskip("robomimic")
    # It downloads a language model on import; and the sizes of its network are not in its files.
    language = ModuleType("robomimic.utils.lang_utils")
    monkeypatch.setitem(sys.modules, "robomimic.utils.lang_utils", language)
    language.LANG_EMB_OBS_KEY, language.get_lang_emb = "lang_emb", lambda text: None
    networks = pytest.importorskip("robomimic.models.diffusion_policy_nets")
    sizes = {"diffusion_step_embed_dim": 8, "down_dims": [8, 8], "kernel_size": 3}
    small = functools.partial(networks.ConditionalUnet1D, **sizes)
    monkeypatch.setattr(networks, "ConditionalUnet1D", small)
    files = pytest.importorskip("robomimic.utils.file_utils")
    path = str(fixture("robomimic050_dp_delta/model_epoch_1.pth"))
    policy, _ = files.policy_from_checkpoint(torch.device("cpu"), path)
    arrays = golden("robomimic050_dp_delta/golden_diffusers0111.npz")
    keys = arrays["obs_key_order"].tolist()

    def act():
        policy.start_episode()
        frames = {key: arrays[f"raw_obs.{key}"][[0, 0]].numpy() for key in keys}
        return torch.as_tensor(policy(frames))

    samples_as_itself_and_in_fewer_calls(policy, act, monkeypatch, 8, 7)
