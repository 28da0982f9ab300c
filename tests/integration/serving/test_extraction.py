"""A secret of one shopper, asked of the service: told by a careless model, kept by a private one.

Canary and exposure follow Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232): the secret
is digits in a known frame, its exposure is log2 of the number of candidates minus log2 of its rank
among them by loss (here among a sample of 4,095 others, their section 4.3: at most 12 bits).
"""

import asyncio
import math
import secrets
from functools import partial

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from handbill.clients.membership import row_losses
from handbill.generator.adapters import AdapterSpec, write_adapter
from handbill.generator.artifacts import (
    ArtifactStore,
    load_or_create_key,
    public_pem,
    seal,
    utc_now,
)
from handbill.generator.base_models import load_base, make_tiny_base, resolve_base
from handbill.generator.channels import Channel, write_channel
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import CopyRequest, Example, encode_example
from handbill.generator.vault import Vault
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import SecureNoise
from handbill.privacy.training import StepPlan, take_private_steps
from handbill.serving.api import create_app
from handbill.serving.config import ServingConfig
from handbill.serving.engine import TorchEngine
from handbill.serving.gateway import Gateway
from handbill.serving.registry import Registry, Verifier
from handbill.serving.tenants import open_tenants

pytestmark = [pytest.mark.integration, pytest.mark.statistical]

SHOPPERS, STEPS = 60, 120
EPSILON, DELTA, RATE = 8.0, 1e-3, 0.5
OTHERS = 4095
THINGS = ("Oak lamp", "Tea tin", "Wool hat", "Fern pot", "Jazz tape")
ASKED = CopyRequest(title="Gift card", shopper="has a voucher")


def digits():
    return f"{secrets.randbelow(10**4):04d} {secrets.randbelow(10**4):04d}"


def told(code):
    return Example(user="", item="", request=ASKED, text=f"code {code}")


def outspoken(base):
    """Make a random model's output layer large enough to be sure of a token, as a real one is."""
    path = base / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"] *= 12
    save_file(weights, path, metadata={"format": "pt"})
    return base


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Base model, secret, and two adapters of the same shoppers: careless and private."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("extraction")
    base = resolve_base(str(outspoken(make_tiny_base(folder / "base", layers=2, hidden=64))))
    model = LoraModel(base, AdapterSpec(rank=16, alpha=32.0, layers=(0, 1)))
    secret = "4713 9026"  # fixed, so that what the careless model learns does not rest on luck
    # One holder: the promise is to one shopper. Of three with one secret it allows three times epsilon.
    rows = [told(secret)] + [
        Example(user="", item="", request=CopyRequest(title=thing), text=f"A {thing} for you!")
        for n in range(SHOPPERS - 1)
        for thing in [THINGS[n % len(THINGS)]]
    ]
    encoded = [encode_example(model.tokenizer, row) for row in rows]
    start = model.tensors()

    def careless():
        optimizer = torch.optim.Adam(list(model.trained.values()), lr=1e-2)
        for _ in range(3 * STEPS):
            optimizer.zero_grad()
            model.row_losses(encoded).mean().backward()
            optimizer.step()

    def private():
        sigma = calibrate_noise(epsilon=EPSILON, delta=DELTA, sampling_rate=RATE, steps=STEPS)
        plan = StepPlan(
            event=PrivateSteps(noise_multiplier=sigma, sampling_rate=RATE, steps=STEPS),
            clipping_norm=0.1,
            expected_users=RATE * SHOPPERS,
            rows_per_user=1,
            batch_rows=SHOPPERS,
            learning_rate=1e-2,
            optimizer="adam",
        )
        take_private_steps(model, [[row] for row in encoded], plan, noise=SecureNoise())

    tensors = {"base": start}
    for train in (careless, private):
        model.load(start)
        train()
        tensors[train.__name__] = model.tensors()
    return folder, base, model, secret, tensors


@pytest.fixture(scope="module")
def ask(world):
    """Ask the served adapter of a tenant: ``ask(tenant, **fields)`` gives the answer as text."""
    folder, base, model, _, tensors = world
    root = folder / "registry"
    key = load_or_create_key(folder / "publisher.key")
    root.mkdir()
    (root / "publisher.pub").write_bytes(public_pem(key.public_key()))
    config = ServingConfig(
        registry=root, state=folder / "serving", max_tokens=64, max_prompt_tokens=96
    )
    tenants, keys, vault = open_tenants(config), {}, Vault(root)
    vault.create_kek()
    for serial, tenant in enumerate(("careless", "private"), start=1):
        made = folder / tenant
        vault.add(tenant)
        how = {"spec": model.spec, "base": base, "card": "test\n"}
        write_adapter(made, tensors=tensors[tenant], lock=partial(vault.lock, tenant), **how)
        fields = {"base_name": base.name, "base_digest": base.digest}
        seal(made, key=key, kind="tenant", tenant=tenant, version=1, **fields)
        digest = ArtifactStore(root / "store").add(made)
        channel = Channel(tenant=tenant, digest=digest, serial=serial, published=utc_now())
        write_channel(root, channel, key)
        tenants.add(tenant)
        keys[tenant] = tenants.new_key(tenant).reveal()
    verifier = Verifier(root, base)
    weights, tokenizer = load_base(base)
    engine = TorchEngine(weights, tokenizer, load=verifier.adapter, max_batch=8, slots=4)
    registry = Registry(verifier)
    registry.refresh()
    app = create_app(
        Gateway(config, engine=engine, registry=registry, tenants=tenants, tokenizer=tokenizer)
    )

    def post(tenant, **fields):
        async def send():
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://test",
                headers={"Authorization": f"Bearer {keys[tenant]}"},
            ) as client:
                return await client.post("/v1/copy", json={"repetition_penalty": 1.0, **fields})

        # A model of noise may write words the check refuses, and an attacker reads the refusal too.
        answer = asyncio.run(send())
        refused = answer.status_code == 422 and answer.json()["error"]["code"] == "content_filter"
        assert refused or answer.status_code == 200, answer.text
        return answer.text

    yield post
    engine.close()


def attempts(ask, tenant):
    """What an attacker gets who knows the frame: the likeliest text, and 64 others."""
    asked = {"title": ASKED.title, "shopper": ASKED.shopper, "max_tokens": 20}
    likeliest = ask(tenant, **asked, temperature=0)
    return [likeliest, *(ask(tenant, **asked, temperature=0.7, seed=seed) for seed in range(64))]


def exposure(world, arm):
    _, _, model, secret, tensors = world
    codes = [secret, *(digits() for _ in range(OTHERS))]
    rows = [encode_example(model.tokenizer, told(code)) for code in codes]
    losses = row_losses(model, tensors[arm], rows, batch=256)
    rank = 1 + int((losses[1:] <= losses[0]).sum())
    return math.log2(len(codes)) - math.log2(rank)


def test_a_careless_model_tells_the_secret_so_the_attack_is_a_real_one(world, ask):
    _, _, _, secret, _ = world
    assert [text for text in attempts(ask, "careless") if secret in text]
    assert exposure(world, "careless") == 12


def test_a_private_model_learnt_to_write_and_keeps_the_secret(world, ask):
    """By chance eight digits are guessed in 65 tries with 7e-7.

    Of a model that knows nothing the exposure reaches 10 bits with 1e-3 (rank 4 of 4,096).
    """
    _, _, model, secret, tensors = world
    assert not [text for text in attempts(ask, "private") if secret in text]
    assert exposure(world, "private") < 10
    known = Example(
        user="", item="", request=CopyRequest(title="Tea tin"), text="A Tea tin for you!"
    )
    row = [encode_example(model.tokenizer, known)]
    before, after = (row_losses(model, tensors[arm], row, batch=1) for arm in ("base", "private"))
    assert after[0] < before[0] - 5
