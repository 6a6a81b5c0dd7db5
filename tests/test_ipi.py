"""The client of i-PI: against ASE's own server to the last digit, and against i-PI itself."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.socketio import SocketServer, actualunixsocketname
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet
from couplings import (
    DTYPES,
    NETWORKS,
    SYSTEMS,
    Nothing,
    assert_close,
    crystal,
    ethanol,
    plain,
    with_card,
)
from frames import ROOT

from molnets import ModelCalculator, checkpoint
from molnets.checkpoint import Card
from molnets.command import run
from molnets.coupling.ipi import serve

SIZES = {"dim_embedding": 8, "num_filters": 8, "num_interactions": 2, "num_gaussians": 8}
I_PI = Path(sys.executable).with_name("i-pi")

# Against a server of ASE


class Served:
    """A server of ASE's, with a client in a thread beside it."""

    def __init__(self, *arguments: object) -> None:
        name = f"molnets_{uuid.uuid4().hex[:12]}"
        self.server = SocketServer(unixsocket=name, timeout=20)
        self.answer: object = None
        self.thread = threading.Thread(target=self._run, args=(name, *arguments))
        self.thread.start()

    def _run(self, name: str, *arguments: object) -> None:
        try:
            self.answer = serve(*arguments, unix=name)
        except Exception as error:  # looked at by the test
            self.answer = error

    def __enter__(self) -> SocketServer:
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_atoms", SYSTEMS.values(), ids=SYSTEMS)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_what_is_sent_is_what_the_plain_network_says(make, make_atoms, dtype):
    atoms, network = make_atoms(), make(dtype)
    like = atoms.copy()
    like.positions[:] = 0  # where its atoms are does not matter
    with Served(network, like) as server:
        for _ in range(2):
            atoms.rattle(0.01, seed=0)
            atoms.set_cell(1.01 * atoms.cell.array)
            results, (energy, forces, virial) = server.calculate(atoms), plain(network, atoms)
            assert_close(results["energy"], energy, dtype)
            assert_close(results["forces"], forces, dtype)
            if atoms.pbc.any():
                assert_close(results["virial"], -(virial + virial.T) / 2, dtype)


def first_answer(*arguments: object, to: Atoms | None = None) -> object:
    """Return what becomes of a client that is asked for the first time."""
    served = Served(*arguments)
    with served as server, pytest.raises((OSError, AssertionError)):  # the server's own words
        server.calculate(ethanol() if to is None else to)
    return served.answer


def test_another_number_of_atoms_than_that_of_the_server():
    for other in (ethanol()[:-1], ethanol()[:1]):
        error = first_answer(NETWORKS["schnet"](), ethanol(), to=other)
        assert isinstance(error, ValueError)
        assert re.match(rf"atoms: expected i-PI's {len(other)} atoms, got 9", str(error))


@pytest.mark.parametrize("of_forces_only, name", [(True, "forces"), (False, "energy")])
def test_results_that_are_not_finite_are_not_sent(of_forces_only, name):
    error = first_answer(Nothing(of_forces_only), ethanol())
    assert isinstance(error, FloatingPointError)
    assert str(error).startswith(f"{name}: expected finite numbers, got")


def test_atoms_in_one_place_and_positions_that_are_not_finite():
    for value, message in (
        (0, "pos: expected distinct"),
        (np.nan, "positions, cell: expected fin"),
    ):
        atoms = ethanol()
        atoms.positions[:2] = value
        error = first_answer(NETWORKS["schnet"](), ethanol(), to=atoms)
        assert isinstance(error, ValueError) and str(error).startswith(message)


def test_a_server_that_goes_away_in_the_middle_of_a_message():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        port, answers = server.getsockname()[1], []

        def client() -> None:
            try:
                serve(NETWORKS["schnet"](), ethanol(), port=port)
            except Exception as error:
                answers.append(error)

        thread = threading.Thread(target=client)
        thread.start()
        connection = server.accept()[0]
        connection.sendall(b"POSDATA     " + bytes(100))
        connection.close()
        thread.join(timeout=20)
    assert isinstance(answers[0], ConnectionError)
    assert "i-PI went away in the middle of a message" in str(answers[0])


# ASE's client leaves its socket to the collector when nobody listens
nobody_listens = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@nobody_listens
def test_what_is_refused_before_anyone_is_asked():
    network, atoms = NETWORKS["schnet"](), ethanol()
    with pytest.raises(ConnectionError, match=r"unix: expected an i-PI that listens at .*ipi_none"):
        serve(network, atoms, unix="none_such")
    with pytest.raises(ConnectionError, match="host, port: expected an i-PI that listens at loc"):
        serve(network, atoms, port=1)
    with pytest.raises(ValueError, match="atoms: expected at least one atom"):
        serve(network, Atoms())
    fixed = ethanol()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="atoms: expected no constraints, which i-PI has, got"):
        serve(network, fixed)
    with pytest.raises(ValueError, match=r"atoms: expected elements of .*, got \['Ar'\]"):
        serve(with_card(network), Atoms("CAr"))
    with pytest.raises(ValueError, match="model_or_checkpoint: expected a model in eV and Å"):
        serve(with_card(network, energy_unit="Hartree"), atoms)


# Against i-PI


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return a checkpoint in float64, its filters not too far from zero."""
    card = Card("schnet", {**SIZES, "cutoff": 2.5, "gamma": 4.0}, "eV", "Å", [1, 6, 8])
    torch.manual_seed(0)
    potential = checkpoint.build(card).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("ipi") / "best.pt"
    checkpoint.save(potential, path)
    return path


INPUT = """<simulation verbosity='low' floatformat='%25.16e'>
<output prefix='out'>
<properties stride='1' filename='p'>[ step, conserved, potential, kinetic_md, virial_md,
{forces} ]</properties>
<checkpoint filename='chk' stride='1' overwrite='false'/>
</output>
<total_steps>{steps}</total_steps>
<prng><seed>1</seed></prng>
<ffsocket name='molnets' mode='unix' pbc='false'><address>{name}</address>
<latency>1e-4</latency><timeout>60</timeout></ffsocket>
<system>
<initialize nbeads='{beads}'><file mode='xyz'> start.xyz </file>
<velocities mode='thermal' units='kelvin'> 300 </velocities></initialize>
<forces><force forcefield='molnets'/></forces>
<motion mode='dynamics'><dynamics mode='nve'><timestep units='femtosecond'> 0.25 </timestep>
</dynamics></motion>
<ensemble><temperature units='kelvin'> 300 </temperature></ensemble>
</system>
</simulation>
"""


def write_start(atoms: Atoms, path: Path) -> None:
    """Write a file that both i-PI and the client read, plain xyz."""
    cell = atoms.cell.cellpar() if atoms.pbc.any() else [30, 30, 30, 90, 90, 90]
    comment = f"# CELL(abcABC): {' '.join(map(repr, map(float, cell)))}"
    ase.io.write(path, atoms, format="xyz", fmt="%22.15f",
                 comment=comment + " positions{angstrom} cell{angstrom}")  # fmt: skip


def simulate(model: Path, atoms: Atoms, folder: Path, beads: int, steps: int, clients: int):
    """Run i-PI and clients of it, each a process; return what the clients said."""
    name = f"molnets_{uuid.uuid4().hex[:12]}"
    forces = ", ".join(f"atom_f(atom={k})" for k in range(len(atoms)))
    text = INPUT.format(name=name, beads=beads, steps=steps, forces=forces)
    (folder / "input.xml").write_text(text)
    write_start(atoms, folder / "start.xyz")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": folder, "env": environment, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    periodic = "yes" if atoms.pbc.any() else "file"
    command = [sys.executable, "-m", "molnets", "ipi", str(model), "start.xyz", "--unix", name]
    processes = [subprocess.Popen([sys.executable, str(I_PI), "input.xml"], **options)]
    try:
        wait_for(Path(actualunixsocketname(name)), processes[0])
        for _ in range(clients):
            processes.append(subprocess.Popen([*command, "--periodic", periodic], **options))
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * (clients + 1), said
    return said[1:]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise TimeoutError(path)


def array(text: str, name: str) -> np.ndarray:
    """Return an array of i-PI's checkpoint."""
    found = re.search(rf"<{name} shape='\(([\d, ]+)\)'>\s*\[(.*?)\]", text, flags=re.DOTALL)
    shape = [int(n) for n in found[1].split(",")]
    return np.array(found[2].split(","), dtype=float).reshape(shape)


def state(folder: Path, step: int, atoms: Atoms) -> list[Atoms]:
    """Return the beads as they are after a step, in ASE's units, with momenta."""
    text = (folder / f"out.chk_{step}").read_text()
    q, p = (array(text, name) for name in ("q", "p"))
    m, cell = array(text, "m"), array(text, "cell").T * units.Bohr
    momentum = units._me / units._amu * units.Bohr / units.AUT
    beads = []
    for positions, momenta in zip(q, p, strict=True):
        bead = Atoms(atoms.numbers, positions.reshape(-1, 3) * units.Bohr, cell=cell)
        bead.pbc = atoms.pbc
        bead.set_masses(m * units._me / units._amu)
        bead.set_momenta(momenta.reshape(-1, 3) * momentum)
        beads.append(bead)
    return beads


needs_ipi = pytest.mark.skipif(not I_PI.exists(), reason="i-PI is an extra: pip install '.[ipi]'")


@needs_ipi
def test_one_bead_of_a_crystal_at_constant_energy_moves_as_in_ase(model, tmp_path):
    atoms, steps = crystal(), 10
    (said,) = simulate(model, atoms, tmp_path, beads=1, steps=steps, clients=1)
    assert f"8 atoms, {atoms.symbols}; periodic along abc\ni-PI asked {steps + 1} times" in said
    table = np.loadtxt(tmp_path / "out.p")
    (ours,) = state(tmp_path, 0, atoms)
    np.testing.assert_allclose(ours.positions, atoms.positions, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.cell.array, atoms.cell.array, rtol=0, atol=1e-6)
    ours.calc = ModelCalculator(model)
    dynamics = VelocityVerlet(ours, timestep=0.25 * units.fs)
    for step, row in enumerate(table):
        (theirs,) = state(tmp_path, step, atoms)
        np.testing.assert_allclose(ours.positions, theirs.positions, rtol=0, atol=1e-7)
        energy, forces, virial = plain(checkpoint.load(model).network, theirs)
        assert_close(row[2] * units.Ha, energy, torch.float64)
        sent = row[10:].reshape(-1, 3) * units.Ha / units.Bohr
        assert_close(sent, forces, torch.float64)
        pressure = row[4:10] * units.Ha / units.Bohr**3
        expected = -(virial + virial.T)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] / 2
        assert_close(1e3 * pressure, 1e3 * expected / theirs.get_volume(), torch.float64)
        dynamics.run(1)
    assert np.abs(ours.positions - atoms.positions).max() > 0.01
    assert np.ptp(table[:, 1]) < 0.02 * np.ptp(table[:, 3])


@needs_ipi
def test_four_beads_over_two_clients(model, tmp_path):
    atoms, steps = ethanol(), 10
    said = simulate(model, atoms, tmp_path, beads=4, steps=steps, clients=2)
    counts = [int(re.search(r"i-PI asked (\d+) times", each)[1]) for each in said]
    assert sum(counts) == 4 * (steps + 1) and min(counts) > 0
    table = np.loadtxt(tmp_path / "out.p")
    network = checkpoint.load(model).network
    for step, row in enumerate(table):
        beads = [plain(network, bead) for bead in state(tmp_path, step, atoms)]
        assert_close(row[2] * units.Ha, np.mean([energy for energy, *_ in beads]), torch.float64)
        mean = np.mean([forces for _, forces, _ in beads], axis=0)  # of the centroid
        assert_close(row[10:].reshape(-1, 3) * units.Ha / units.Bohr, mean, torch.float64)
    energies = [energy for energy, *_ in beads]
    assert np.ptp(energies) > 1e-3  # control: beads differ
    assert np.ptp(table[:, 1]) < 0.05 * np.ptp(table[:, 3])


# The command


@nobody_listens
def test_the_command_says_what_is_wrong(model, tmp_path):
    ase.io.write(tmp_path / "start.xyz", ethanol())
    ase.io.write(tmp_path / "crystal.extxyz", crystal())
    files = [str(model), str(tmp_path / "start.xyz")]
    with pytest.raises(ValueError, match=r"frame: expected a file of atoms, got .*, where no file"):
        run(["ipi", str(model), str(tmp_path / "none.xyz")])
    with pytest.raises(ValueError, match="port: expected a number from 1 to 65535, got 0"):
        run(["ipi", *files, "--port=0"])
    with pytest.raises(ConnectionError, match="host, port: expected an i-PI that listens at local"):
        run(["ipi", *files, "--port=1"])
    with pytest.raises(FileNotFoundError, match="path: expected a checkpoint"):
        run(["ipi", str(tmp_path / "none.pt"), files[1], "--port=1"])
    with pytest.raises(ValueError, match="skin: expected a finite number"):
        run(["ipi", *files, "--skin=-1"])


@nobody_listens
def test_the_command_says_what_it_drives(model, tmp_path, capsys):
    ase.io.write(tmp_path / "start.xyz", ethanol())
    ase.io.write(tmp_path / "crystal.extxyz", crystal())
    for file, periodic, along in (
        ("start.xyz", "file", "none"),
        ("start.xyz", "yes", "abc"),
        ("crystal.extxyz", "file", "abc"),
        ("crystal.extxyz", "no", "none"),
    ):
        with pytest.raises(ConnectionError):
            run(["ipi", str(model), str(tmp_path / file), "--port=1", "--periodic", periodic])
        assert f"; periodic along {along}\n" in capsys.readouterr().out
