"""The commands on the pages of docs/ run, in the order of the page, against a real server with what the page presumes.

Its database is PostgreSQL, its store S3, as on the page about teams.

Left out are commands that need another machine, a real model or an outside service; other tests run those.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry.api.jobs import ClaimRequest, FinishRequest
from registry.attestations import keys
from registry.client.registry import Registry
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from tests import non_peft_files, samples, services
from tests.access.identity import LOGIN_ISSUER, Provider
from tests.cli.runner import CommandRunner
from tests.faults.servers import Server
from tests.import_table import ROOT
from tests.test_docs import typed_lines

LEFT_OUT = (
    "adapter serve", "adapter migrate", "adapter config show",  # the test itself runs the server
    "adapter worker", "adapter smoke-test",            # a real model: tests/flows
    "adapter publisher add", "adapter token exchange", # an issuer: tests/access
    "adapter sign acme/support@3 --bundle",            # another program makes the bundle: tests/signing
    "adapter webhook create",                          # a public address: tests/server
    "adapter agent", "adapter convert acme/support:prod --format gguf",
    "adapter convert art/style --format diffusers --into art/style-diffusers --wait",  # tests/serving, proof
)  # fmt: skip


class PagesServer(Server):
    """`providers`: an issuer of jobs, and one of people with groups."""

    providers: tuple[Provider, Provider]


@pytest.fixture
def engines() -> str:
    return "vllm==0.33.0"


@pytest.fixture
def server(
    engines: str, tmp_path: Path, postgres_server: str, s3_url: str, store_server: services.ObjectStore
) -> Iterator[PagesServer]:
    folders = [tmp_path / name for name in ("jobs", "people")]
    for folder in folders:
        folder.mkdir()
    jobs = Provider(folders[0])
    people = Provider(folders[1], LOGIN_ISSUER, login_claim="email", groups_claim="groups")
    jobs.also_trust(people)
    environment = {
        "REGISTRY_ENGINES": engines, "REGISTRY_ISSUERS": jobs.settings,
        "REGISTRY_DATA": str(tmp_path / "data"),
        "REGISTRY_BLOBS": s3_url, "REGISTRY_S3_ENDPOINT": store_server.endpoint, "AWS_REGION": store_server.region,
        "AWS_ACCESS_KEY_ID": store_server.access_key, "AWS_SECRET_ACCESS_KEY": store_server.secret_key,
    }  # fmt: skip
    with services.fresh_database(postgres_server) as url:
        server = PagesServer(environment | {"REGISTRY_DATABASE_URL": url})
        server.providers = jobs, people
        with server.running():
            yield server


def page(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text()


@pytest.fixture
def cli(server: PagesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandRunner:
    """A machine on which the files that the pages name lie, logged in as administrator."""
    for name in os.environ:
        if name.startswith(("ADAPTER_", "REGISTRY_")):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("ADAPTER_REGISTRY", server.url)
    monkeypatch.setenv("ADAPTER_TOKEN", server.token)
    monkeypatch.chdir(tmp_path)
    cli = CommandRunner(tmp_path)
    base = samples.llama("smollm2")
    samples.write(base.files, tmp_path / "models/SmolLM2-135M-Instruct")
    cli("base", "add", "smollm2", "models/SmolLM2-135M-Instruct")
    return cli


def private_key(folder: Path) -> keys.PrivateKey:
    """A new key in OpenSSH's format, as `ssh-keygen` writes it."""
    data = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    samples.write({".ssh/id_ed25519": data}, folder)
    return keys.PrivateKey.parse(data)


def pass_smoke_test(server: PagesServer, name: str = "acme/support") -> None:
    """File a passing verdict for the waiting smoke test, as a worker would."""
    with Registry(server.url, server.token) as registry:
        claimed = registry.claim(ClaimRequest(worker="test"))
        assert claimed is not None
        version = registry.version(name)
        report = Report(
            check=Check.SMOKE,
            subject=version.digest,
            base=version.base,
            base_fingerprint=version.base_fingerprint,
            findings=(),
            made_by={"worker": "test"},
        )
        registry.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))


def run_pages(cli: CommandRunner, *pages: str, replacements: dict[str, str]) -> list[str]:
    """Run every command of the pages that is not left out; return what ran."""
    lines = [line for name in pages for line in typed_lines(page(name))]
    lines = [line for line in lines if not line.startswith(LEFT_OUT)]
    for line in lines:
        for shown, actual in replacements.items():
            line = line.replace(shown, actual)
        cli(*map(os.path.expanduser, shlex.split(line.partition(" > ")[0], comments=True)[1:]))
    return lines


def test_the_commands_on_the_page_about_access_run_on_an_empty_server(cli: CommandRunner, server: PagesServer) -> None:
    """Then a job pushes with its identity token, and a member of a group promotes, as the page says."""
    samples.write(samples.lora(samples.llama("smollm2")), cli.folder / "out")
    places = dict.fromkeys(("https://registry.example.org", "https://staging.example.org"), server.url)
    assert len(run_pages(cli, "access", replacements=places)) >= 9
    jobs, people = server.providers
    publisher = next(line for line in typed_lines(page("access")) if line.startswith("adapter publisher add"))
    cli(*shlex.split(publisher.replace("https://token.actions.githubusercontent.com", jobs.issuer))[1:])
    assertion = jobs.sign(repository_owner_id="1234567")
    job = cli("token", "exchange", "--adapter", "acme/support", stdin=assertion, ADAPTER_TOKEN="").stdout.strip()
    cli("push", "out", "acme/support", "--base", "smollm2", ADAPTER_TOKEN=job)
    member = people.sign(email="carol@example.org", email_verified=True, groups=["ml-platform", "others"])
    carol = cli("token", "exchange", stdin=member, ADAPTER_TOKEN="").stdout.strip()
    assert "carol@example.org" in cli("whoami", ADAPTER_TOKEN=carol).stdout
    cli("push", "out", "acme/other", "--base", "smollm2", ADAPTER_TOKEN=carol, expect=3)
    cli("promote", "acme/support@1", "canary", ADAPTER_TOKEN=carol)
    outsider = people.sign(email="mallory@example.org", email_verified=True, groups=["others"])
    mallory = cli("token", "exchange", stdin=outsider, ADAPTER_TOKEN="").stdout.strip()
    cli("show", "acme/support", ADAPTER_TOKEN=mallory, expect=4)


def test_a_reader_of_the_team_page_opens_a_gate_with_a_real_worker(cli: CommandRunner, server: PagesServer) -> None:
    """In containers tests/deploy follows the same page."""
    config = {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    samples.write(samples.lora(samples.llama("smollm2"), config=config), cli.folder / "out/checkpoint-200")
    base = samples.llama("smollm2").write(cli.folder / "models/SmolLM2-135M-Instruct")
    lines = [line.replace("https://registry.example.org", server.url) for line in typed_lines(page("team-server"))]
    printed = ""
    for line in lines:
        if line.startswith("adapter smoke-test"):
            cli("promote", "acme/support", "prod", expect=6)
            gpu = next(word for word in printed.split() if word.startswith("lra_"))
            done = cli("worker", "--once", "--base", f"HuggingFaceTB/SmolLM2-135M-Instruct={base}", ADAPTER_TOKEN=gpu)
            assert "acme/support@1: smoke: pass" in done.stdout
        else:
            printed = cli(*shlex.split(line)[1:]).stdout
    assert lines[-1] == "adapter history acme/support:prod"
    assert "on compat pass, smoke pass" in printed


def test_the_commands_on_the_pages_about_the_life_of_an_adapter_run_one_after_another(
    cli: CommandRunner, server: PagesServer
) -> None:
    for seed in (1, 2, 3):
        samples.write(samples.lora(samples.llama("smollm2"), seed=seed), cli.folder / "out")
        cli("push", "out", "acme/support", "--base", "smollm2")
        pass_smoke_test(server)
    for number in (2, 3):
        cli("promote", f"acme/support@{number}", "prod")
    cli("pull", "acme/support:prod", "support")
    folders = ("out/checkpoint-200", "out/checkpoint-400", "adapters/support-en", "adapters/sales")
    for seed, folder in enumerate(folders, 4):
        samples.write(samples.lora(samples.llama("smollm2"), seed=seed), cli.folder / folder)
    for folder in ("adapters/support-en", "adapters/sales"):
        cli("push", folder, "acme/cust-1", "--base", "smollm2", "--alias", "canary", "--tag", "team=nlp")
        pass_smoke_test(server, "acme/cust-1")
        if folder == "adapters/support-en":
            cli("promote", "acme/cust-1", "prod")
    for seed, folder in enumerate(("out/billing-1", "out/billing-2", "out/support"), 20):
        samples.write(samples.lora(samples.llama("smollm2"), seed=seed), cli.folder / folder)
        cli("push", folder, "acme/billing", "--base", "smollm2")
        pass_smoke_test(server, "acme/billing")
    adapters = page("promotion").partition("```toml\n")[2].partition("```")[0]
    (cli.folder / "adapters.toml").write_text(adapters)
    (cli.folder / "provenance.toml").write_text('[run]\ntool = "mlflow"\nid = "4f1c0e9a"\n')
    log_key = cli("audit", "key", "--json").json["keys"][0]
    replacements = {
        "https://registry.example.org": server.url,
        "key:5f0c…": private_key(cli.folder / "home").public.identity,
        "@sha256:…": f"@sha256:{'0' * 64}",
        "registry.example.org/3f9c61d2+1a2b3c4d+AQ…": log_key,
    }
    ran = run_pages(cli, "bases", "signing", replacements=replacements)
    cli("promote", "acme/support@2", "prod")
    pages = ("checks", "find", "promotion", "operations", "deploy", "rest", "lineage")
    ran += run_pages(cli, *pages, replacements=replacements)
    ran += run_pages(cli, "push-and-pull", replacements=replacements)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    ran += run_pages(cli, "auditors", replacements=replacements | {"2026-11-01": today, "2026-11-30": today})
    assert (cli.folder / "adapters-of-smollm2/acme/support/adapter_config.json").is_file()
    assert len(ran) >= 82


def test_the_commands_on_the_page_about_other_registries_push_what_comes_from_there(
    cli: CommandRunner, server: PagesServer
) -> None:
    for seed, folder in enumerate(("adapters/support", "adapters/sales", "revision", "adapters/support-3"), 1):
        samples.write(samples.lora(samples.llama("smollm2"), seed=seed), cli.folder / folder)
    (cli.folder / "adapters.toml").write_text(page("migrate").partition("```toml\n")[2].partition("```")[0])
    assert len(run_pages(cli, "migrate", replacements={"https://registry.example.org": server.url})) == 14
    repeated = cli("apply", "--file", "adapters.toml", "--json").json
    assert {item["state"] for item in repeated["items"]} == {"unchanged"}


def test_the_commands_on_the_pages_about_trainers_and_images_push_what_diffusers_and_kohya_write(
    cli: CommandRunner,
) -> None:
    cli("base", "add", "sd15", str(non_peft_files.pipeline(cli.folder / "models/sd15")))
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    tensors = {
        f"{attention}.lora_A.weight": ("F32", (4, 32), None),
        f"{attention}.lora_B.weight": ("F32", (32, 4), None),
    }
    output = {"pytorch_lora_weights.safetensors": samples.safetensors(tensors), "README.md": b"# Sketch\n"}
    others = {"image_0.png": b"png", "checkpoint-4/optimizer.bin": b"state", "logs/events.out": b"log"}
    samples.write(output | others, cli.folder / "out/diffusers")
    samples.write({"style.safetensors": non_peft_files.kohya()}, cli.folder / "out/kohya")
    assert len(run_pages(cli, "trainers", replacements={})) == 3
    for name, formats in (("acme/sketch", "diffusers"), ("acme/style", "kohya")):
        version = cli("show", name, "--json").json
        assert version["verdicts"][0]["outcome"] == "pass", version
        assert formats in str(version)
    cli("push", "out/kohya", "art/style", "--base", "sd15")
    cli("gate", "set", "art", "prod", "--require", "compat")
    cli("promote", "art/style", "prod")
    samples.write({"style.safetensors": non_peft_files.kohya(metadata={"ss_epoch": "2"})}, cli.folder / "out/kohya")
    samples.write({"neon.safetensors": non_peft_files.kohya(metadata={"ss_epoch": "3"})}, cli.folder / "styles/neon")
    assert len(run_pages(cli, "image-adapters", replacements={})) == 15


@pytest.mark.parametrize("engines", ["vllm==0.33.0 comfyui==2026.8"])
def test_the_commands_on_the_pages_about_engines_export_and_check_what_prod_has(
    cli: CommandRunner, server: PagesServer, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.environment["REGISTRY_S3_ENDPOINT"])
    llama, smollm2 = samples.llama("llama3"), samples.llama("smollm2")
    cli("base", "add", "llama3", samples.write(llama.files, cli.folder / "models/llama3"))
    cli("base", "add", "flux", str(non_peft_files.pipeline(cli.folder / "models/flux")))
    samples.write(samples.lora(smollm2), cli.folder / "out/support")
    samples.write(samples.lora(llama), cli.folder / "out/other")
    samples.write(non_peft_files.gguf_adapter(smollm2), cli.folder / "out/gguf")
    samples.write({"style.safetensors": non_peft_files.kohya()}, cli.folder / "out/style")
    for folder, name, base in (
        ("support", "acme/support", "smollm2"), ("other", "acme/other", "llama3"), ("style", "art/style", "flux"),
        ("gguf", "acme/support-gguf", "smollm2"),
    ):  # fmt: skip
        cli("push", f"out/{folder}", name, "--base", base)
        cli("gate", "set", name, "prod", "--require", "compat")
        if folder != "gguf":
            cli("promote", name, "prod")
    places = {"s3://models/prod": f"{s3_url}-prod", "/mnt/": f"{cli.folder}/mnt/", "/srv/": f"{cli.folder}/srv/"}
    ran = []
    for path in sorted((ROOT / "docs/serving").glob("*.md")):
        ran += run_pages(cli, f"serving/{path.stem}", replacements=places)
    assert len(ran) >= 40
    assert (cli.folder / "srv/gguf/support").is_dir()
