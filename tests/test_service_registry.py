"""What is served: the default, and models loaded, replaced and dropped while others answer."""

import asyncio
import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from mcdrop.errors import BundleError, SettingError
from service import wire
from service.errors import LoadError, NotOfferedError, NotReadyError, UnknownModelError
from service.model import ServedModel
from service.registry import Registry
from service.server import serve, serving
from serving import add_version, damage, models_folder, settings


class Counts:
    """What the registry counts, as a list of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def model_loaded(self, model: str, version: str, seconds: float) -> None:
        assert seconds > 0
        self.calls.append(("loaded", model, version))

    def model_ready(self, model: str, version: str, ready: bool) -> None:
        self.calls.append(("ready", model, version, ready))

    def load_failed(self, model: str) -> None:
        self.calls.append(("failed", model))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model with one version."""
    add_version(tmp_path, "count", 1)
    return tmp_path


@contextlib.asynccontextmanager
async def running(folder: Path, **changes: Any) -> AsyncIterator[Registry]:
    """A registry with its scheduler, loaded; models can be changed."""
    registry = Registry(settings(models=folder, enable_model_control=True, **changes))
    registry.scheduler.start()
    try:
        await registry.load()
        yield registry
    finally:
        await asyncio.to_thread(registry.scheduler.stop)


@contextlib.asynccontextmanager
async def held(registry: Registry) -> AsyncIterator[None]:
    """The inference thread is busy, so that a load can read its folder but not warm up."""
    begun, over = threading.Event(), threading.Event()

    def steps() -> Iterator[None]:
        begun.set()
        over.wait()
        yield

    work = asyncio.create_task(registry.scheduler.run(steps()))
    await asyncio.to_thread(begun.wait)
    try:
        yield
    finally:
        over.set()
        await work


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


async def ask(registry: Registry, model: ServedModel) -> tuple[str, float]:
    """The version that answers and what it says."""
    job = model.job(wire.PredictRequest(inputs=[[0.5, 0.5]]), wire.encode, arrived=time.monotonic())
    registry.scheduler.submit(job)
    answer = orjson.loads(await job.future)
    return answer["version"], answer["mean"][0][0]


def states(registry: Registry) -> dict[tuple[str, str], str]:
    return {(entry["name"], entry.get("version", "")): entry["state"] for entry in registry.index()}


# ---- at the start


def test_the_default_is_the_only_model_or_the_one_that_is_named(tmp_path):
    assert Registry(settings(models=models_folder() / "one")).default == "insects"
    assert Registry(settings()).default is None
    assert Registry(settings(default_model="pair")).default == "pair"
    add_version(tmp_path, "default", 1)
    add_version(tmp_path, "other", 1)
    assert Registry(settings(models=tmp_path)).default == "default"


def test_a_default_that_is_not_served_is_an_error():
    with pytest.raises(SettingError, match=r"default_model names 'nope'.*Served: insects, pair, slope"):
        Registry(settings(default_model="nope"))


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_an_error(name):
    with pytest.raises(SettingError, match=rf"device is '{name}'"):
        Registry(settings(device=name))


def test_damaged_weights_end_the_server_with_their_error(repository):
    damage(repository / "count" / "1")
    with pytest.raises(BundleError), serving(settings(models=repository)):
        pass
    with pytest.raises(BundleError):
        serve(settings(models=repository))


def test_the_newest_version_is_loaded_and_an_older_one_is_only_listed(repository):
    add_version(repository, "count", 2)

    async def check() -> None:
        async with running(repository) as registry:
            assert await ask(registry, registry.get("count")) == ("2", 2.0)
            assert states(registry) == {("count", "1"): "UNAVAILABLE", ("count", "2"): "READY"}
            with pytest.raises(UnknownModelError, match=r"Version 1 of the model count is not served: not loaded"):
                registry.get("count", "1")
            with pytest.raises(UnknownModelError, match=r"no version '9'. It has: 1, 2"):
                registry.get("count", "9")

    asyncio.run(check())


def test_all_versions_are_loaded_where_that_is_asked_for_and_the_newest_is_the_default(repository):
    add_version(repository, "count", 2)

    async def check() -> None:
        async with running(repository, versions="all") as registry:
            assert set(states(registry).values()) == {"READY"}
            for version in ("1", "2"):
                assert await ask(registry, registry.get("count", version)) == (version, float(version))
            assert registry.get(None) is registry.get("count", "2")
            add_version(repository, "count", 3)
            (repository / "count" / "1").rename(repository / "count" / ".1")
            await registry.load_model("count")
            assert states(registry) == {("count", v): s for v, s in zip("123", ("UNAVAILABLE", "READY", "READY"))}
            assert await ask(registry, registry.get("count")) == ("3", 3.0)

    asyncio.run(check())


# ---- while serving


def test_a_new_version_takes_over_and_is_counted(repository):
    async def check() -> None:
        async with running(repository) as registry:
            registry.metrics = counts = Counts()
            old = registry.get("count")
            add_version(repository, "count", 2)
            await registry.load_model("count")
            assert await ask(registry, registry.get("count")) == ("2", 2.0)
            assert states(registry) == {("count", "1"): "UNAVAILABLE", ("count", "2"): "READY"}
            assert counts.calls == [
                ("loaded", "count", "2"), ("ready", "count", "2", True), ("ready", "count", "1", False)
            ]  # fmt: skip
            assert await ask(registry, old) == ("1", 1.0)  # a request that came before

    asyncio.run(check())


def test_the_same_version_is_read_again(repository):
    async def check() -> None:
        async with running(repository) as registry:
            (repository / "count" / "1").rename(repository / "count" / ".old")
            add_version(repository, "count", 2).rename(repository / "count" / "1")
            assert await ask(registry, registry.get("count")) == ("1", 1.0)
            await registry.load_model("count")
            assert await ask(registry, registry.get("count")) == ("1", 2.0)
            assert states(registry) == {("count", "1"): "READY"}

    asyncio.run(check())


def test_what_was_served_is_freed_with_its_last_request(repository):
    async def check() -> None:
        async with running(repository) as registry:
            model: Any = registry.get("count")
            old = weakref.ref(model.loaded)
            add_version(repository, "count", 2)
            async with held(registry):
                answer = asyncio.create_task(ask(registry, model))
                loading = asyncio.create_task(registry.load_model("count"))
                await until(
                    lambda: registry.scheduler.pending == 1 and states(registry).get(("count", "2")) == "LOADING"
                )
            await loading
            assert registry.get("count").version == "2"
            assert await answer == ("1", 1.0)
            assert old() is not None  # `model`, as a request whose body is still on its way holds it
            del model, answer
            gc.collect()
            assert old() is None
            model = registry.get("count")
            newer = weakref.ref(model.loaded)
            del model
            await registry.unload_model("count")
            gc.collect()
            assert newer() is None

    asyncio.run(check())


@pytest.mark.parametrize("what", ["a new version", "the version that is served", "its description", "its place"])
def test_a_failed_reload_keeps_what_is_served_and_says_so(repository, what, caplog):
    async def check() -> None:
        async with running(repository) as registry:
            registry.metrics = counts = Counts()
            folder = repository / "count" / "1"
            if what == "a new version":
                damage(add_version(repository, "count", 2))
            elif what == "the version that is served":
                damage(folder)
            elif what == "its description":
                (folder / "model.json").write_text("{")
            else:
                folder.rename(repository / "count" / ".1")
            with pytest.raises(LoadError, match="count could not be loaded; version 1 is served as before: "):
                await registry.load_model("count")
            registry.check_ready()
            assert await ask(registry, registry.get("count")) == ("1", 1.0)
            assert counts.calls == [("failed", "count")]
            (served,) = [entry for entry in registry.index() if entry.get("version") == "1"]
            assert served["state"] == "READY"
            assert "the last reload failed" in served["reason"]
            assert "version 1 is served as before" in caplog.text
            if what == "a new version":
                assert states(registry)["count", "2"] == "UNAVAILABLE"
                (new,) = [entry for entry in registry.index() if entry.get("version") == "2"]
                assert "it is cut off" in new["reason"]
            # and all is well again with a whole folder
            add_version(repository, "count", 3)
            await registry.load_model("count")
            assert await ask(registry, registry.get("count")) == ("3", 3.0)

    asyncio.run(check())


def test_of_several_versions_all_take_over_or_none(repository):
    async def check() -> None:
        async with running(repository, versions="all") as registry:
            registry.metrics = counts = Counts()
            add_version(repository, "count", 2)
            damage(add_version(repository, "count", 3))
            with pytest.raises(LoadError, match="version 1 is served as before"):
                await registry.load_model("count")
            assert states(registry) == {
                ("count", "1"): "READY",
                ("count", "2"): "UNAVAILABLE",
                ("count", "3"): "UNAVAILABLE",
            }
            assert [call for call in counts.calls if call[0] != "loaded"] == [("failed", "count")]
            assert await ask(registry, registry.get(None)) == ("1", 1.0)

    asyncio.run(check())


def test_a_damaged_description_is_a_failed_reload_of_the_model_that_it_described(tmp_path):
    async def check() -> None:
        folder = shutil.copytree(models_folder() / "one", tmp_path / "one")
        async with running(tmp_path) as registry:
            (folder / "model.json").write_text("{")
            with pytest.raises(LoadError, match="insects could not be loaded; version 3 is served as before: .*one"):
                await registry.load_model("insects")
            assert registry.get("insects").version == "3"

    asyncio.run(check())


def test_a_fault_elsewhere_in_the_repository_does_not_matter_and_is_listed(repository):
    async def check() -> None:
        async with running(repository) as registry:
            (add_version(repository, "other", 1) / "model.json").write_text("{")
            await registry.load_model("count")
            (other,) = [entry for entry in registry.index() if entry["name"] == "other"]
            assert other["state"] == "UNAVAILABLE"
            assert "model.json cannot be used" in other["reason"]
            with pytest.raises(LoadError, match="The model other could not be loaded: .*model.json"):
                await registry.load_model("other")

    asyncio.run(check())


def test_a_model_is_being_loaded_until_it_is_warm_and_the_server_stays_ready(repository):
    async def check() -> None:
        async with running(repository) as registry:
            add_version(repository, "other", 1)
            async with held(registry):
                loading = asyncio.create_task(registry.load_model("other"))
                await until(lambda: states(registry).get(("other", "1")) == "LOADING")
                registry.check_ready()
                for version in (None, "1"):
                    with pytest.raises(NotReadyError, match="is still being loaded"):
                        registry.get("other", version)
                assert registry.get("count").version == "1"
            await loading
            assert await ask(registry, registry.get("other")) == ("1", 1.0)
            assert registry.default == "count"  # as it was with one model

    asyncio.run(check())


def test_a_load_that_is_given_up_leaves_nothing_half_done(repository):
    async def check() -> None:
        async with running(repository) as registry:
            add_version(repository, "count", 2)
            async with held(registry):
                loading = asyncio.create_task(registry.load_model("count"))
                await until(lambda: states(registry).get(("count", "2")) == "LOADING")
                loading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await loading
            assert states(registry) == {("count", "1"): "READY", ("count", "2"): "UNAVAILABLE"}
            assert await ask(registry, registry.get("count")) == ("1", 1.0)
            await registry.load_model("count")
            assert await ask(registry, registry.get("count")) == ("2", 2.0)

    asyncio.run(check())


def test_of_reloads_at_the_same_time_each_is_whole_and_the_last_wins(repository):
    async def check() -> None:
        async with running(repository) as registry:
            first = registry.get("count")
            reloads = [asyncio.create_task(registry.load_model("count"))]
            for number in (2, 3):
                add_version(repository, "count", number)
                reloads += [asyncio.create_task(registry.load_model("count")) for _ in range(2)]
            while not all(reload.done() for reload in reloads):
                version, mean = await ask(registry, registry.get("count"))
                assert float(version) == mean
            await asyncio.gather(*reloads)
            assert await ask(registry, registry.get("count")) == ("3", 3.0)
            assert [entry for entry, state in states(registry).items() if state == "READY"] == [("count", "3")]
            assert await ask(registry, first) == ("1", 1.0)

    asyncio.run(check())


def test_an_unloaded_model_is_unknown_until_it_is_loaded_again(repository):
    async def check() -> None:
        async with running(repository) as registry:
            registry.metrics = counts = Counts()
            await registry.unload_model("count")
            await registry.unload_model("count")  # as it should be already
            assert registry.index() == [{"name": "count", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]
            for version in (None, "1"):
                with pytest.raises(UnknownModelError, match="is not served: unloaded"):
                    registry.get("count", version)
            registry.check_ready()
            await registry.load_model("count")
            assert await ask(registry, registry.get("count")) == ("1", 1.0)
            assert counts.calls == [
                ("ready", "count", "1", False), ("loaded", "count", "1"), ("ready", "count", "1", True)
            ]  # fmt: skip

    asyncio.run(check())


def test_a_model_called_default_becomes_it_only_where_there_is_none(repository):
    async def check() -> None:
        add_version(repository, "second", 1)
        for wanted, then in ((None, "default"), ("second", "second")):
            async with running(repository, default_model=wanted) as registry:
                assert registry.default == wanted
                add_version(repository, "default", 1)
                await registry.load_model("default")
                assert registry.default == then
            (repository / "default").rename(repository / f".{then}")

    asyncio.run(check())


def test_names_that_are_not_in_the_repository_are_unknown(repository):
    async def check() -> None:
        async with running(repository) as registry:
            with pytest.raises(UnknownModelError, match=r"no model 'nope' in .*There are: count"):
                await registry.load_model("nope")
            with pytest.raises(UnknownModelError, match=r"no model '../count'"):
                await registry.load_model("../count")
            with pytest.raises(UnknownModelError, match=r"no model 'nope'"):
                await registry.unload_model("nope")

    asyncio.run(check())


def test_models_are_not_changed_where_that_is_not_enabled(repository):
    async def check() -> None:
        registry = Registry(settings(models=repository))
        for verb in (registry.load_model, registry.unload_model):
            with pytest.raises(NotOfferedError, match="MCDROP_ENABLE_MODEL_CONTROL"):
                await verb("count")
        assert states(registry) == {("count", "1"): "LOADING"}

    asyncio.run(check())
