"""How files are to be read: which keys hold the labels, and which units they are in.

What is converted becomes eV and Å, ASE's units, so that a model can be simulated as it is. Units
that nobody names are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ase import units

from molnets.checks import expect
from molnets.options import option

ENERGY_UNITS = {
    "eV": 1.0, "meV": 1e-3, "kcal/mol": units.kcal / units.mol, "kJ/mol": units.kJ / units.mol,
    "Hartree": units.Hartree, "Ha": units.Hartree, "Rydberg": units.Rydberg, "Ry": units.Rydberg,
}  # fmt: skip
LENGTH_UNITS = {
    "Å": 1.0, "A": 1.0, "Ang": 1.0, "Angstrom": 1.0, "angstrom": 1.0, "Bohr": units.Bohr,
    "bohr": units.Bohr, "nm": units.nm, "pm": 0.01,
}  # fmt: skip
REDUCED_UNITS = ("ε", "σ")  # Lennard-Jones', never converted
ENERGY_UNITS["ε"] = LENGTH_UNITS["σ"] = 1.0
PRESSURE_UNITS = {"GPa": units.GPa, "kbar": 1000 * units.bar, "kB": 1000 * units.bar}
OPTIONS = {"energies": "--energy-key", "forces": "--forces-key", "stresses": "--stress-key"}


@dataclass(frozen=True)
class Source:
    """How files are to be read; what is "" is found out, or taken as it is."""

    energy_key: str = option("", "name of the energies in the file; found by itself if it is usual")
    forces_key: str = option("", "name of the forces, likewise")
    stress_key: str = option("", "name of the stresses, likewise")
    energy_unit: str = option("", f"unit of the energies, {', '.join(ENERGY_UNITS)}: converted to "
                              "eV; files that ASE reads are in eV and Å")  # fmt: skip
    length_unit: str = option("", "unit of the positions, Å, Bohr, nm or pm: converted to Å")
    force_unit: str = option("", "unit of the forces, such as Hartree/Bohr, if it is not that of "
                             "the energies / that of the positions")  # fmt: skip
    stress_unit: str = option(
        "", "unit of the stresses, GPa or kbar, if it is not energy / length³"
    )

    def __post_init__(self) -> None:
        for name, known in (("energy_unit", ENERGY_UNITS), ("length_unit", LENGTH_UNITS),
                            ("stress_unit", PRESSURE_UNITS)):  # fmt: skip
            value = getattr(self, name)
            expected = f"one of {', '.join(known)}, or none for others: nothing is converted then"
            expect(not value or value in known, name, expected, repr(value))
        expected = "stresses, in energy / length³, which are no virials"
        expect("virial" not in self.stress_key.lower(), "stress_key", expected, self.stress_key)
        energy, _, length = self.force_unit.rpartition("/")
        ok = not self.force_unit or (energy in ENERGY_UNITS and length in LENGTH_UNITS)
        expect(ok, "force_unit", "an energy / a length, such as Hartree/Bohr", self.force_unit)

    def key(self, what: str) -> str:
        """Return the name that was given for the energies, forces or stresses, or ""."""
        return {"energies": self.energy_key, "forces": self.forces_key,
                "stresses": self.stress_key}.get(what, "")  # fmt: skip

    def factors(self) -> tuple[float, float, float, float]:
        """Return what energies, lengths, forces and stresses are multiplied by."""
        E = ENERGY_UNITS.get(self.energy_unit, 1.0)
        L = LENGTH_UNITS.get(self.length_unit, 1.0)
        energy, _, length = self.force_unit.rpartition("/")
        F = ENERGY_UNITS[energy] / LENGTH_UNITS[length] if self.force_unit else E / L
        return E, L, F, PRESSURE_UNITS.get(self.stress_unit, E / L**3)
