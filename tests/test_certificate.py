import ssl
import stat
from pathlib import Path

from nas_attn.certificate import issue


def test_key_and_certificate_are_private_and_vouch_for_themselves(tmp_path: Path) -> None:
    variables = issue(tmp_path, ["192.0.2.1"])
    assert variables["RAY_USE_TLS"] == "1"
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    context = ssl.create_default_context(cafile=variables["RAY_TLS_CA_CERT"])
    context.load_cert_chain(variables["RAY_TLS_SERVER_CERT"], variables["RAY_TLS_SERVER_KEY"])
    (own,) = [entry for entry in context.get_ca_certs() if ("commonName", "nas-attn") in entry["subject"][0]]
    assert {("IP Address", "192.0.2.1"), ("IP Address", "127.0.0.1"), ("DNS", "localhost")} <= set(own["subjectAltName"])
