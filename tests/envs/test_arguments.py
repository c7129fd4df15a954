"""Arguments of registered environments, and gymnax objects as environments."""

import gymnax
import jax
import jax.numpy as jnp
import pytest

from jaxdqn import envs
from jaxdqn.config.config import Config
from jaxdqn.envs.gymnax import as_environment
from jaxdqn.training.trainer import make_trainer
from tests.toys import tiny


def configured(name, *env_args):
    return envs.configured_environment(Config(env=name, env_args=env_args))


def test_arguments_reach_the_parameters_and_the_constructor():
    limited = configured("CartPole-v1", "max_steps_in_episode=50", "gravity=20")
    assert limited.spec.max_episode_steps == 50
    assert limited.spec.arguments == ("gravity=20.0", "max_steps_in_episode=50")
    deep = configured("DeepSea-bsuite", "size=5")
    assert deep.spec.obs_shape == (5, 5)
    assert deep.spec.arguments == ("size=5",)


def test_arguments_at_their_defaults_are_no_arguments():
    assert configured("CartPole-v1").spec.arguments == ()
    assert configured("CartPole-v1", "max_steps_in_episode=500").spec.arguments == ()
    assert configured("DeepSea-bsuite", "size=8").spec == configured("DeepSea-bsuite").spec


def test_names_may_have_hyphens_and_values_are_read_by_type():
    environment = configured("CartPole-v1", "max-steps-in-episode = 30", "tau=0.5")
    assert environment.spec.arguments == ("max_steps_in_episode=30", "tau=0.5")
    spec = configured("DeepSea-bsuite", "deterministic=false").spec
    assert spec.arguments == ("deterministic=False",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps=5", r"env_args='max_steps': must be an argument of CartPole-v1; nearest: max_"),
        ("max_steps_in_episode=5.5", r"max_steps_in_episode=5.5': must be a whole number"),
        ("max_steps_in_episode=0", r"max_steps_in_episode=0': must be at least 1"),
        ("gravity=heavy", r"env_args='gravity=heavy': must be a number"),
        ("gravity=true", r"env_args='gravity=True': must be a number"),
    ],
)
def test_wrong_arguments_are_rejected_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        configured("CartPole-v1", text)


@pytest.mark.parametrize("text", ["gravity", "gravity=", "=5", "a b=3"])
def test_the_form_of_arguments_is_checked_with_the_configuration(text):
    with pytest.raises(ValueError, match=r"env_args=.*: must be NAME=VALUE"):
        Config(env_args=(text,))


def test_an_argument_is_given_once():
    with pytest.raises(ValueError, match="must be the only value of gravity"):
        Config(env_args=("gravity=1", "gravity=2"))


def steps_of(environment):
    """Return the observations of 12 steps."""
    key = jax.random.key(3)

    def step(state, key):
        state, timestep = environment.step(key, state, jnp.int32(1))
        return state, timestep.obs

    return jax.lax.scan(step, environment.reset(key)[0], jax.random.split(key, 12))[1]


def test_a_gymnax_object_is_the_environment_of_its_name():
    env, params = gymnax.make("CartPole-v1")
    named = envs.make("CartPole-v1")
    for given in (env, (env, params)):
        environment = as_environment(given)
        assert environment.spec == named.spec
        assert (steps_of(environment) == steps_of(named)).all()
        assert environment.render is not None


def test_a_gymnax_object_keeps_its_parameters():
    env, params = gymnax.make("CartPole-v1")
    given = (env, params.replace(max_steps_in_episode=7))
    trainer = make_trainer(tiny(), environment=given)
    assert trainer.environment.spec.max_episode_steps == 7
    assert trainer.environment.spec.arguments == ("max_steps_in_episode=7",)


def test_an_own_subclass_of_a_gymnax_environment_has_its_own_name():
    class Heavy(type(gymnax.make("CartPole-v1")[0])):
        pass

    assert as_environment(Heavy()).spec.name == "Heavy"


def test_objects_that_are_no_environments_are_rejected():
    continuous = gymnax.make("Pendulum-v1")[0]
    with pytest.raises(ValueError, match=r"Pendulum-v1': must have discrete actions, not Box"):
        as_environment(continuous)
    for wrong in ("CartPole-v1", (1, 2), jax):
        with pytest.raises(ValueError, match="must be a jaxdqn Environment, a gymnax environment"):
            as_environment(wrong)


def test_arguments_do_not_go_with_an_environment_of_your_own():
    with pytest.raises(ValueError, match=r"env_args=\('gravity=1',\): must be left out with your"):
        envs.configured_environment(Config(env_args=("gravity=1",)), envs.make("CartPole-v1"))
