"""The kernel's binary interface to KVM on x86-64, as `<linux/kvm.h>` and `<asm/kvm.h>` have it.

Structures have the kernel's names, fields and order, with padding spelled out; ioctl numbers are
computed from their sizes (`<asm-generic/ioctl.h>`). Where C has a nested struct or union without a
name of its own, it is named here after its field; the union in `kvm_run` that has no field name
either is `exit`. A structure that ends in a flexible array is its head alone: `Flexible` adds the
entries. What each ioctl does: Documentation/virt/kvm/api.rst.
"""

import ctypes
from ctypes import Structure, Union
from enum import IntEnum, IntFlag
from typing import Annotated, Generic, Self, TypeVar

from cerne.kvm._structure import (
    U8Array,
    U16Array,
    U32Array,
    U64Array,
    c_layout,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)

KVM_API_VERSION = 12


# --- memory ---------------------------------------------------------------------------------------


class MemoryFlag(IntFlag):
    """KVM_MEM_*: how a memory slot is kept."""

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1


@c_layout
class kvm_userspace_memory_region(Structure):
    slot: u32
    flags: u32
    guest_phys_addr: u64
    memory_size: u64
    userspace_addr: u64


@c_layout
class kvm_userspace_memory_region2(Structure):
    slot: u32
    flags: u32
    guest_phys_addr: u64
    memory_size: u64
    userspace_addr: u64
    guest_memfd_offset: u64
    guest_memfd: u32
    pad1: u32
    pad2: Annotated[U64Array, ctypes.c_uint64 * 14]


@c_layout
class kvm_dirty_log(Structure):
    slot: u32
    padding1: u32
    dirty_bitmap: u64


@c_layout
class kvm_clear_dirty_log(Structure):
    slot: u32
    num_pages: u32
    first_page: u64
    dirty_bitmap: u64


# --- interrupts -----------------------------------------------------------------------------------


class Irqchip(IntEnum):
    """KVM_IRQCHIP_*: the chips behind KVM_CREATE_IRQCHIP."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


@c_layout
class kvm_irq_level(Structure):
    irq: u32
    level: u32


@c_layout
class kvm_pic_state(Structure):
    last_irr: u8
    irr: u8
    imr: u8
    isr: u8
    priority_add: u8
    irq_base: u8
    read_reg_select: u8
    poll: u8
    special_mask: u8
    init_state: u8
    auto_eoi: u8
    rotate_on_auto_eoi: u8
    special_fully_nested_mode: u8
    init4: u8
    elcr: u8
    elcr_mask: u8


KVM_IOAPIC_NUM_PINS = 24


@c_layout
class kvm_ioapic_state(Structure):
    base_address: u64
    ioregsel: u32
    id: u32
    irr: u32
    pad: u32
    redirtbl: Annotated[U64Array, ctypes.c_uint64 * KVM_IOAPIC_NUM_PINS]


@c_layout
class kvm_irqchip_chip(Union):
    dummy: Annotated[U8Array, ctypes.c_uint8 * 512]
    pic: kvm_pic_state
    ioapic: kvm_ioapic_state


@c_layout
class kvm_irqchip(Structure):
    chip_id: u32
    pad: u32
    chip: kvm_irqchip_chip


class RoutingType(IntEnum):
    """KVM_IRQ_ROUTING_*: the kind of a GSI's route."""

    IRQCHIP = 1
    MSI = 2


@c_layout
class kvm_irq_routing_irqchip(Structure):
    irqchip: u32
    pin: u32


@c_layout
class kvm_irq_routing_msi(Structure):
    address_lo: u32
    address_hi: u32
    data: u32
    pad: u32


@c_layout
class kvm_irq_routing_entry_u(Union):
    irqchip: kvm_irq_routing_irqchip
    msi: kvm_irq_routing_msi
    pad: Annotated[U32Array, ctypes.c_uint32 * 8]


@c_layout
class kvm_irq_routing_entry(Structure):
    gsi: u32
    type: u32
    flags: u32
    pad: u32
    u: kvm_irq_routing_entry_u


@c_layout
class kvm_irq_routing(Structure):
    nr: u32
    flags: u32


class IrqfdFlag(IntFlag):
    """KVM_IRQFD_FLAG_*."""

    DEASSIGN = 1 << 0
    RESAMPLE = 1 << 1


@c_layout
class kvm_irqfd(Structure):
    fd: u32
    gsi: u32
    flags: u32
    resamplefd: u32
    pad: Annotated[U8Array, ctypes.c_uint8 * 16]


class IoeventfdFlag(IntFlag):
    """KVM_IOEVENTFD_FLAG_*."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    DEASSIGN = 1 << 2


@c_layout
class kvm_ioeventfd(Structure):
    datamatch: u64
    addr: u64
    len: u32
    fd: s32
    flags: u32
    pad: Annotated[U8Array, ctypes.c_uint8 * 36]


@c_layout
class kvm_msi(Structure):
    address_lo: u32
    address_hi: u32
    data: u32
    flags: u32
    devid: u32
    pad: Annotated[U8Array, ctypes.c_uint8 * 12]


@c_layout
class kvm_interrupt(Structure):
    irq: u32


# --- timer, clock and the rest of a VM ------------------------------------------------------------


@c_layout
class kvm_pit_config(Structure):
    flags: u32
    pad: Annotated[U32Array, ctypes.c_uint32 * 15]


@c_layout
class kvm_pit_channel_state(Structure):
    count: u32
    latched_count: u16
    count_latched: u8
    status_latched: u8
    status: u8
    read_state: u8
    write_state: u8
    write_latch: u8
    rw_mode: u8
    mode: u8
    bcd: u8
    gate: u8
    count_load_time: s64


@c_layout
class kvm_pit_state2(Structure):
    channels: Annotated["ctypes.Array[kvm_pit_channel_state]", kvm_pit_channel_state * 3]
    flags: u32
    reserved: Annotated[U32Array, ctypes.c_uint32 * 9]


@c_layout
class kvm_reinject_control(Structure):
    pit_reinject: u8
    reserved: Annotated[U8Array, ctypes.c_uint8 * 31]


class ClockFlag(IntFlag):
    """KVM_CLOCK_*: which fields of kvm_clock_data are valid."""

    TSC_STABLE = 1 << 1
    REALTIME = 1 << 2
    HOST_TSC = 1 << 3


@c_layout
class kvm_clock_data(Structure):
    clock: u64
    flags: u32
    pad0: u32
    realtime: u64
    host_tsc: u64
    pad: Annotated[U32Array, ctypes.c_uint32 * 4]


@c_layout
class kvm_enable_cap(Structure):
    cap: u32
    flags: u32
    args: Annotated[U64Array, ctypes.c_uint64 * 4]
    pad: Annotated[U8Array, ctypes.c_uint8 * 64]


# --- a vCPU's state -------------------------------------------------------------------------------


@c_layout
class kvm_regs(Structure):
    rax: u64
    rbx: u64
    rcx: u64
    rdx: u64
    rsi: u64
    rdi: u64
    rsp: u64
    rbp: u64
    r8: u64
    r9: u64
    r10: u64
    r11: u64
    r12: u64
    r13: u64
    r14: u64
    r15: u64
    rip: u64
    rflags: u64


@c_layout
class kvm_segment(Structure):
    base: u64
    limit: u32
    selector: u16
    type: u8
    present: u8
    dpl: u8
    db: u8
    s: u8
    l: u8  # noqa: E741 (the kernel's name)
    g: u8
    avl: u8
    unusable: u8
    padding: u8


@c_layout
class kvm_dtable(Structure):
    base: u64
    limit: u16
    padding: Annotated[U16Array, ctypes.c_uint16 * 3]


@c_layout
class kvm_sregs(Structure):
    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    apic_base: u64
    interrupt_bitmap: Annotated[U64Array, ctypes.c_uint64 * 4]


@c_layout
class kvm_sregs2(Structure):
    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    apic_base: u64
    flags: u64
    pdptrs: Annotated[U64Array, ctypes.c_uint64 * 4]


@c_layout
class kvm_fpu(Structure):
    fpr: Annotated["ctypes.Array[U8Array]", ctypes.c_uint8 * 16 * 8]
    fcw: u16
    fsw: u16
    ftwx: u8
    pad1: u8
    last_opcode: u16
    last_ip: u64
    last_dp: u64
    xmm: Annotated["ctypes.Array[U8Array]", ctypes.c_uint8 * 16 * 16]
    mxcsr: u32
    pad2: u32


@c_layout
class kvm_msr_entry(Structure):
    index: u32
    reserved: u32
    data: u64


@c_layout
class kvm_msrs(Structure):
    nmsrs: u32
    pad: u32


@c_layout
class kvm_msr_list(Structure):
    nmsrs: u32


class CpuidFlag(IntFlag):
    """KVM_CPUID_FLAG_*."""

    SIGNIFCANT_INDEX = 1 << 0
    STATEFUL_FUNC = 1 << 1
    STATE_READ_NEXT = 1 << 2


@c_layout
class kvm_cpuid_entry2(Structure):
    function: u32
    index: u32
    flags: u32
    eax: u32
    ebx: u32
    ecx: u32
    edx: u32
    padding: Annotated[U32Array, ctypes.c_uint32 * 3]


@c_layout
class kvm_cpuid2(Structure):
    nent: u32
    padding: u32


KVM_APIC_REG_SIZE = 0x400


@c_layout
class kvm_lapic_state(Structure):
    regs: Annotated[U8Array, ctypes.c_uint8 * KVM_APIC_REG_SIZE]


class MpState(IntEnum):
    """KVM_MP_STATE_*: whether a vCPU runs."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    AP_RESET_HOLD = 9


@c_layout
class kvm_mp_state(Structure):
    mp_state: u32


class VcpuEventFlag(IntFlag):
    """KVM_VCPUEVENT_VALID_*: which fields of kvm_vcpu_events are to be set."""

    NMI_PENDING = 1 << 0
    SIPI_VECTOR = 1 << 1
    SHADOW = 1 << 2
    SMM = 1 << 3
    PAYLOAD = 1 << 4
    TRIPLE_FAULT = 1 << 5


@c_layout
class kvm_vcpu_events_exception(Structure):
    injected: u8
    nr: u8
    has_error_code: u8
    pending: u8
    error_code: u32


@c_layout
class kvm_vcpu_events_interrupt(Structure):
    injected: u8
    nr: u8
    soft: u8
    shadow: u8


@c_layout
class kvm_vcpu_events_nmi(Structure):
    injected: u8
    pending: u8
    masked: u8
    pad: u8


@c_layout
class kvm_vcpu_events_smi(Structure):
    smm: u8
    pending: u8
    smm_inside_nmi: u8
    latched_init: u8


@c_layout
class kvm_vcpu_events_triple_fault(Structure):
    pending: u8


@c_layout
class kvm_vcpu_events(Structure):
    exception: kvm_vcpu_events_exception
    interrupt: kvm_vcpu_events_interrupt
    nmi: kvm_vcpu_events_nmi
    sipi_vector: u32
    flags: u32
    smi: kvm_vcpu_events_smi
    triple_fault: kvm_vcpu_events_triple_fault
    reserved: Annotated[U8Array, ctypes.c_uint8 * 26]
    exception_has_payload: u8
    exception_payload: u64


@c_layout
class kvm_debugregs(Structure):
    db: Annotated[U64Array, ctypes.c_uint64 * 4]
    dr6: u64
    dr7: u64
    flags: u64
    reserved: Annotated[U64Array, ctypes.c_uint64 * 9]


@c_layout
class kvm_xsave(Structure):
    region: Annotated[U32Array, ctypes.c_uint32 * 1024]


KVM_MAX_XCRS = 16


@c_layout
class kvm_xcr(Structure):
    xcr: u32
    reserved: u32
    value: u64


@c_layout
class kvm_xcrs(Structure):
    nr_xcrs: u32
    flags: u32
    xcrs: Annotated["ctypes.Array[kvm_xcr]", kvm_xcr * KVM_MAX_XCRS]
    padding: Annotated[U64Array, ctypes.c_uint64 * 16]


@c_layout
class kvm_translation(Structure):
    linear_address: u64
    physical_address: u64
    valid: u8
    writeable: u8
    usermode: u8
    pad: Annotated[U8Array, ctypes.c_uint8 * 5]


class GuestDebug(IntFlag):
    """KVM_GUESTDBG_*: what stops a guest that is debugged."""

    ENABLE = 0x1
    SINGLESTEP = 0x2
    USE_SW_BP = 0x10000
    USE_HW_BP = 0x20000
    INJECT_DB = 0x40000
    INJECT_BP = 0x80000
    BLOCKIRQ = 0x100000


@c_layout
class kvm_guest_debug_arch(Structure):
    debugreg: Annotated[U64Array, ctypes.c_uint64 * 8]


@c_layout
class kvm_guest_debug(Structure):
    control: u32
    pad: u32
    arch: kvm_guest_debug_arch


@c_layout
class kvm_signal_mask(Structure):
    len: u32


# --- kvm_run: what a vCPU shares with its thread --------------------------------------------------


class ExitReason(IntEnum):
    """KVM_EXIT_*: why KVM_RUN returned."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    WATCHDOG = 21
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class InternalError(IntEnum):
    """KVM_INTERNAL_ERROR_*: the reason why the kernel stopped the guest."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1


@c_layout
class kvm_debug_exit_arch(Structure):
    exception: u32
    pad: u32
    pc: u64
    dr6: u64
    dr7: u64


@c_layout
class kvm_run_hw(Structure):
    hardware_exit_reason: u64


@c_layout
class kvm_run_fail_entry(Structure):
    hardware_entry_failure_reason: u64
    cpu: u32
    pad: u32


@c_layout
class kvm_run_ex(Structure):
    exception: u32
    error_code: u32


@c_layout
class kvm_run_io(Structure):
    direction: u8
    size: u8
    port: u16
    count: u32
    data_offset: u64


@c_layout
class kvm_run_debug(Structure):
    arch: kvm_debug_exit_arch


@c_layout
class kvm_run_mmio(Structure):
    phys_addr: u64
    data: Annotated[U8Array, ctypes.c_uint8 * 8]
    len: u32
    is_write: u8
    pad: Annotated[U8Array, ctypes.c_uint8 * 3]


@c_layout
class kvm_run_hypercall(Structure):
    nr: u64
    args: Annotated[U64Array, ctypes.c_uint64 * 6]
    ret: u64
    longmode: u32
    pad: u32


@c_layout
class kvm_run_tpr_access(Structure):
    rip: u64
    is_write: u32
    pad: u32


@c_layout
class kvm_run_internal(Structure):
    suberror: u32
    ndata: u32
    data: Annotated[U64Array, ctypes.c_uint64 * 16]


@c_layout
class kvm_run_emulation_failure(Structure):
    suberror: u32
    ndata: u32
    flags: u64
    insn_size: u8
    insn_bytes: Annotated[U8Array, ctypes.c_uint8 * 15]


@c_layout
class kvm_run_system_event(Structure):
    type: u32
    ndata: u32
    data: Annotated[U64Array, ctypes.c_uint64 * 16]


@c_layout
class kvm_run_eoi(Structure):
    vector: u8


@c_layout
class kvm_run_msr(Structure):
    error: u8
    pad: Annotated[U8Array, ctypes.c_uint8 * 7]
    reason: u32
    index: u32
    data: u64


@c_layout
class kvm_run_notify(Structure):
    flags: u32


@c_layout
class kvm_run_memory_fault(Structure):
    flags: u64
    gpa: u64
    size: u64


@c_layout
class kvm_run_exit(Union):
    hw: kvm_run_hw
    fail_entry: kvm_run_fail_entry
    ex: kvm_run_ex
    io: kvm_run_io
    debug: kvm_run_debug
    mmio: kvm_run_mmio
    hypercall: kvm_run_hypercall
    tpr_access: kvm_run_tpr_access
    internal: kvm_run_internal
    emulation_failure: kvm_run_emulation_failure
    system_event: kvm_run_system_event
    eoi: kvm_run_eoi
    msr: kvm_run_msr
    notify: kvm_run_notify
    memory_fault: kvm_run_memory_fault
    padding: Annotated[U8Array, ctypes.c_uint8 * 256]


class SyncRegs(IntFlag):
    """KVM_SYNC_X86_*: which registers KVM_RUN carries in kvm_run."""

    REGS = 1 << 0
    SREGS = 1 << 1
    EVENTS = 1 << 2


@c_layout
class kvm_sync_regs(Structure):
    regs: kvm_regs
    sregs: kvm_sregs
    events: kvm_vcpu_events


@c_layout
class kvm_run_s(Union):
    regs: kvm_sync_regs
    padding: Annotated[U8Array, ctypes.c_uint8 * 2048]


@c_layout
class kvm_run(Structure):
    request_interrupt_window: u8
    immediate_exit: u8
    padding1: Annotated[U8Array, ctypes.c_uint8 * 6]
    exit_reason: u32
    ready_for_interrupt_injection: u8
    if_flag: u8
    flags: u16
    cr8: u64
    apic_base: u64
    exit: kvm_run_exit
    kvm_valid_regs: u64
    kvm_dirty_regs: u64
    s: kvm_run_s


# --- statistics -----------------------------------------------------------------------------------


@c_layout
class kvm_stats_header(Structure):
    flags: u32
    name_size: u32
    num_desc: u32
    id_offset: u32
    desc_offset: u32
    data_offset: u32


@c_layout
class kvm_stats_desc(Structure):
    flags: u32
    exponent: s16
    size: u16
    offset: u32
    bucket_size: u32


KVM_STATS_TYPE_MASK = 0xF
KVM_STATS_TYPE_LINEAR_HIST = 3
KVM_STATS_TYPE_LOG_HIST = 4


# --- ioctls ---------------------------------------------------------------------------------------

_KVMIO = 0xAE
_WRITE = 1
_READ = 2

_AnyStructure = type[Structure] | type[ctypes.c_uint64]


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, argument: _AnyStructure) -> int:
    return _WRITE << 30 | ctypes.sizeof(argument) << 16 | _io(number)


def _ior(number: int, argument: _AnyStructure) -> int:
    return _READ << 30 | ctypes.sizeof(argument) << 16 | _io(number)


def _iowr(number: int, argument: _AnyStructure) -> int:
    return _iow(number, argument) | _ior(number, argument)


class Ioctl(IntEnum):
    """The ioctls of /dev/kvm, of a VM and of a vCPU, by the kernel's names."""

    KVM_GET_API_VERSION = _io(0x00)
    KVM_CREATE_VM = _io(0x01)
    KVM_GET_MSR_INDEX_LIST = _iowr(0x02, kvm_msr_list)
    KVM_CHECK_EXTENSION = _io(0x03)
    KVM_GET_VCPU_MMAP_SIZE = _io(0x04)
    KVM_GET_SUPPORTED_CPUID = _iowr(0x05, kvm_cpuid2)
    KVM_GET_MSR_FEATURE_INDEX_LIST = _iowr(0x0A, kvm_msr_list)

    KVM_CREATE_VCPU = _io(0x41)
    KVM_GET_DIRTY_LOG = _iow(0x42, kvm_dirty_log)
    KVM_SET_USER_MEMORY_REGION = _iow(0x46, kvm_userspace_memory_region)
    KVM_SET_TSS_ADDR = _io(0x47)
    KVM_SET_IDENTITY_MAP_ADDR = _iow(0x48, ctypes.c_uint64)
    KVM_SET_USER_MEMORY_REGION2 = _iow(0x49, kvm_userspace_memory_region2)
    KVM_CREATE_IRQCHIP = _io(0x60)
    KVM_IRQ_LINE = _iow(0x61, kvm_irq_level)
    KVM_GET_IRQCHIP = _iowr(0x62, kvm_irqchip)
    KVM_SET_IRQCHIP = _ior(0x63, kvm_irqchip)
    KVM_SET_GSI_ROUTING = _iow(0x6A, kvm_irq_routing)
    KVM_REINJECT_CONTROL = _io(0x71)
    KVM_IRQFD = _iow(0x76, kvm_irqfd)
    KVM_CREATE_PIT2 = _iow(0x77, kvm_pit_config)
    KVM_SET_BOOT_CPU_ID = _io(0x78)
    KVM_IOEVENTFD = _iow(0x79, kvm_ioeventfd)
    KVM_SET_CLOCK = _iow(0x7B, kvm_clock_data)
    KVM_GET_CLOCK = _ior(0x7C, kvm_clock_data)
    KVM_GET_PIT2 = _ior(0x9F, kvm_pit_state2)
    KVM_SET_PIT2 = _iow(0xA0, kvm_pit_state2)
    KVM_SIGNAL_MSI = _iow(0xA5, kvm_msi)
    KVM_CLEAR_DIRTY_LOG = _iowr(0xC0, kvm_clear_dirty_log)

    KVM_RUN = _io(0x80)
    KVM_GET_REGS = _ior(0x81, kvm_regs)
    KVM_SET_REGS = _iow(0x82, kvm_regs)
    KVM_GET_SREGS = _ior(0x83, kvm_sregs)
    KVM_SET_SREGS = _iow(0x84, kvm_sregs)
    KVM_TRANSLATE = _iowr(0x85, kvm_translation)
    KVM_INTERRUPT = _iow(0x86, kvm_interrupt)
    KVM_GET_MSRS = _iowr(0x88, kvm_msrs)
    KVM_SET_MSRS = _iow(0x89, kvm_msrs)
    KVM_SET_SIGNAL_MASK = _iow(0x8B, kvm_signal_mask)
    KVM_GET_FPU = _ior(0x8C, kvm_fpu)
    KVM_SET_FPU = _iow(0x8D, kvm_fpu)
    KVM_GET_LAPIC = _ior(0x8E, kvm_lapic_state)
    KVM_SET_LAPIC = _iow(0x8F, kvm_lapic_state)
    KVM_SET_CPUID2 = _iow(0x90, kvm_cpuid2)
    KVM_GET_CPUID2 = _iowr(0x91, kvm_cpuid2)
    KVM_GET_MP_STATE = _ior(0x98, kvm_mp_state)
    KVM_SET_MP_STATE = _iow(0x99, kvm_mp_state)
    KVM_NMI = _io(0x9A)
    KVM_SET_GUEST_DEBUG = _iow(0x9B, kvm_guest_debug)
    KVM_GET_VCPU_EVENTS = _ior(0x9F, kvm_vcpu_events)
    KVM_SET_VCPU_EVENTS = _iow(0xA0, kvm_vcpu_events)
    KVM_GET_DEBUGREGS = _ior(0xA1, kvm_debugregs)
    KVM_SET_DEBUGREGS = _iow(0xA2, kvm_debugregs)
    KVM_SET_TSC_KHZ = _io(0xA2)
    KVM_GET_TSC_KHZ = _io(0xA3)
    KVM_ENABLE_CAP = _iow(0xA3, kvm_enable_cap)
    KVM_GET_XSAVE = _ior(0xA4, kvm_xsave)
    KVM_SET_XSAVE = _iow(0xA5, kvm_xsave)
    KVM_GET_XCRS = _ior(0xA6, kvm_xcrs)
    KVM_SET_XCRS = _iow(0xA7, kvm_xcrs)
    KVM_KVMCLOCK_CTRL = _io(0xAD)
    KVM_GET_SREGS2 = _ior(0xCC, kvm_sregs2)
    KVM_SET_SREGS2 = _iow(0xCD, kvm_sregs2)
    KVM_GET_STATS_FD = _io(0xCE)
    KVM_GET_XSAVE2 = _ior(0xCF, kvm_xsave)


class Capability(IntEnum):
    """KVM_CAP_*: the arguments of KVM_CHECK_EXTENSION."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    CHECK_EXTENSION_VM = 105
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    GET_MSR_FEATURES = 153
    EXCEPTION_PAYLOAD = 164
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    X86_USER_SPACE_MSR = 188
    DIRTY_LOG_RING = 192
    SREGS2 = 200
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    XSAVE2 = 208
    DISABLE_QUIRKS2 = 213
    X86_TRIPLE_FAULT_EVENT = 218
    X86_NOTIFY_VMEXIT = 219
    USER_MEMORY2 = 231
    GUEST_MEMFD = 234


_Head = TypeVar("_Head", bound=Structure)
_Entry = TypeVar("_Entry", kvm_msr_entry, kvm_cpuid_entry2, kvm_irq_routing_entry, ctypes.c_uint32)


class Flexible(Generic[_Head, _Entry]):
    """A structure and the flexible array that follows it, in one buffer."""

    __slots__ = ("buffer", "entries", "head")

    def __init__(self, buffer: bytearray, head: _Head, entries: "ctypes.Array[_Entry]") -> None:
        self.buffer = buffer
        self.head = head
        """The structure's own fields; looks into the buffer."""
        self.entries: ctypes.Array[_Entry] = entries
        """The array after it; looks into the buffer."""

    @classmethod
    def of(cls, head: type[_Head], entry: type[_Entry], count: int) -> Self:
        """A zeroed structure with room for `count` entries."""
        offset = ctypes.sizeof(head)
        buffer = bytearray(offset + count * ctypes.sizeof(entry))
        return cls(buffer, head.from_buffer(buffer), (entry * count).from_buffer(buffer, offset))
