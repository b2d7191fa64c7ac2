"""/proc/cpuinfo of machines, as their owners published it: hrw/arm-socs-table (issues 25, 88 and 96), Arm's and AWS's
pages on Cobalt 100 and Graviton3, and lscpu of a Jetson AGX Orin. Serial numbers are left out."""

from __future__ import annotations

_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_V84 = (_V82.replace("lrcpc", "jscvt fcma lrcpc")
        + " sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg")


def _arm(features: str, *cores: str, tail: str = "") -> str:
    """One block a core, as kernels for arm64 write them; a core is `implementer/part`."""
    blocks = []
    for number, core in enumerate(cores):
        implementer, part = core.split("/")
        blocks.append(f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
                      f"CPU implementer\t: {implementer}\nCPU architecture: 8\nCPU variant\t: 0x4\n"
                      f"CPU part\t: {part}\nCPU revision\t: 1\n")
    return "\n".join([*blocks, tail])


RASPBERRY_PI_5 = _arm(_V82, *["0x41/0xd0b"] * 4,
                      tail="Hardware\t: BCM2835\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n")
RASPBERRY_PI_4 = _arm("fp asimd evtstrm crc32 cpuid", *["0x41/0xd08"] * 4,
                      tail="Revision\t: d03115\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5\n")
JETSON_ORIN = _arm(_V82 + " uscat ilrcpc flagm paca pacg", *["0x41/0xd42"] * 12)
JETSON_TX2 = _arm("fp asimd evtstrm aes pmull sha1 sha2 crc32", "0x41/0xd07", "0x4e/0x003", "0x4e/0x003",
                  *["0x41/0xd07"] * 3)
GRAVITON_3 = _arm(_V84 + " dcpodp svei8mm svebf16 i8mm bf16 dgh rng", *["0x41/0xd40"] * 64)
# 32 bits: one name a core, and Features in other words.
RASPBERRY_PI_2 = ("processor\t: 0\nmodel name\t: ARMv7 Processor rev 5 (v7l)\nBogoMIPS\t: 38.40\n"
                  "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm\n"
                  "CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\nCPU part\t: 0xc07\n"
                  "CPU revision\t: 5\n\nHardware\t: BCM2709\n")


def x86(flags: str, name: str = "Intel(R) Core(TM) i5", processors: int = 1) -> str:
    """Blocks as kernels for x86 write them."""
    return "\n".join(f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: {name}\ncpu MHz\t\t: 2596.126\n"
                     f"flags\t\t: fpu vme {flags}\nbugs\t\t: spectre_v1\n" for number in range(processors))
