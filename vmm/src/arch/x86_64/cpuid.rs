//! What the guest may see of the CPU.
//!
//! On usual hosts that is what KVM supports, with each vCPU's own id in it. On hosts that need the assist, features
//! whose instructions the host's emulator lacks are taken out; the host honours that for the guest's kernel only in
//! part, so the command line repeats it (`clearcpuid=`, see [`crate::builder`]).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Words for the guest's `clearcpuid=` on hosts that need the assist: features whose instructions its emulator lacks,
/// and string instructions that it runs byte by byte.
pub const ASSIST_CLEARED: &str = "popcnt,rdtscp,invpcid,xsave,cx16,umip,fsgsbase,rdpid,smap,smep,erms,fsrm";

/// The base of KVM's own leaves (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURES: u32 = 0x4000_0001;

/// Paravirtual features that make the guest's kernel use hypercalls, which hang on hosts that need the assist:
/// unhalt, TLB flush, IPIs, host polling, yield.
const KVM_HYPERCALL_FEATURES: u32 = 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13;

/// Leaf 1 ECX: FMA, CX16, PDCM, PCID, SSE4.2, MOVBE, POPCNT, XSAVE, OSXSAVE, AVX, F16C.
const ASSIST_1_ECX: u32 =
    1 << 12 | 1 << 13 | 1 << 15 | 1 << 17 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;

/// Leaf 7 EBX: FSGSBASE, HLE, AVX2, SMEP, ERMS, INVPCID, RTM, all of AVX-512, SMAP.
const ASSIST_7_EBX: u32 = 1
    | 1 << 4
    | 1 << 5
    | 1 << 7
    | 1 << 9
    | 1 << 10
    | 1 << 11
    | 1 << 16
    | 1 << 17
    | 1 << 20
    | 1 << 21
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 30
    | 1 << 31;

const TSC_DEADLINE_1_ECX: u32 = 1 << 24;
const HYPERVISOR_1_ECX: u32 = 1 << 31;
const RDTSCP_80000001_EDX: u32 = 1 << 27;

/// The table for vCPU `id` of `vcpus`, made of what the host supports.
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8, tsc_deadline: bool, assist: bool) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        if assist {
            mask(entry);
        }
        identify(entry, id, vcpus, tsc_deadline);
    }
    cpuid
}

/// What of a table identifies the kind of CPU: vendor, family and model, and the features that a guest's programs may have
/// found. Values that differ from one processor of a host to the next (ids, sizes of what is switched on) are not among it.
pub fn identity(supported: &CpuId) -> impl Iterator<Item = u32> {
    supported.as_slice().iter().flat_map(|entry| match (entry.function, entry.index) {
        (0, _) => [entry.function, entry.eax, entry.ebx, entry.ecx, entry.edx],
        // EBX holds the local APIC's id; OSXSAVE in ECX follows a control register.
        (1, _) => [entry.function, entry.eax, 0, entry.ecx & !(1 << 27), entry.edx],
        (7, _) => [entry.function + (entry.index << 16), 0, entry.ebx, entry.ecx & !(1 << 4), entry.edx],
        (0x8000_0001 | KVM_FEATURES, _) => [entry.function, entry.eax, 0, entry.ecx, entry.edx],
        _ => [0; 5],
    })
}

/// Takes out what the host's emulator lacks.
fn mask(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        (1, _) => entry.ecx &= !ASSIST_1_ECX,
        (7, 0) => {
            entry.ebx &= !ASSIST_7_EBX;
            (entry.ecx, entry.edx) = (0, 0);
        }
        (7 | 0xd, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        (0x8000_0001, _) => entry.edx &= !RDTSCP_80000001_EDX,
        (KVM_FEATURES, _) => entry.eax &= !KVM_HYPERCALL_FEATURES,
        _ => {}
    }
}

/// Writes the vCPU's own id and the shape of the machine: one socket, `vcpus` cores, no threads.
fn identify(entry: &mut kvm_cpuid_entry2, id: u8, vcpus: u8, tsc_deadline: bool) {
    let (id, vcpus) = (u32::from(id), u32::from(vcpus));
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xffff | vcpus << 16 | id << 24;
            entry.ecx |= HYPERVISOR_1_ECX;
            if tsc_deadline {
                entry.ecx |= TSC_DEADLINE_1_ECX;
            }
        }
        // Extended topology: level 0 is one thread a core, level 1 all cores of the socket (Intel SDM 2A, CPUID).
        0xb | 0x1f => {
            let bits = u32::BITS - (vcpus - 1).leading_zeros();
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, 1 << 8),
                1 => (bits, vcpus, 2 << 8 | 1),
                index => (0, 0, index),
            };
            entry.edx = id;
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (vcpus - 1),
        // AMD extended topology: APIC id, core id.
        0x8000_001e => (entry.eax, entry.ebx) = (id, id),
        _ => {}
    }
}

/// The processor's brand string, from leaves 0x8000_0002 to 0x8000_0004, if KVM passes them on.
pub fn brand(cpuid: &CpuId) -> Option<String> {
    let mut bytes = Vec::new();
    for leaf in 0x8000_0002..=0x8000_0004 {
        if let Some(entry) = cpuid.as_slice().iter().find(|entry| entry.function == leaf) {
            for register in [entry.eax, entry.ebx, entry.ecx, entry.edx] {
                bytes.extend(register.to_le_bytes());
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let entry = |function, index, value| kvm_cpuid_entry2 {
            function,
            index,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..Default::default()
        };
        let all = u32::MAX;
        CpuId::from_entries(&[entry(1, 0, all), entry(7, 0, all), entry(0xb, 1, 0), entry(KVM_FEATURES, 0, all)])
            .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function).unwrap()
    }

    #[test]
    fn each_vcpu_sees_its_own_id_and_the_machines_shape() {
        let cpuid = for_vcpu(&host(), 2, 3, true, false);
        assert_eq!(leaf(&cpuid, 1).ebx >> 16, 2 << 8 | 3);
        assert_eq!((leaf(&cpuid, 0xb).eax, leaf(&cpuid, 0xb).ebx, leaf(&cpuid, 0xb).edx), (2, 3, 2));
    }

    #[test]
    fn only_a_host_that_needs_the_assist_loses_features() {
        assert_eq!(leaf(&for_vcpu(&host(), 0, 1, true, false), 7).ebx, u32::MAX);
        let masked = for_vcpu(&host(), 0, 1, true, true);
        assert_eq!(leaf(&masked, 1).ecx & 1 << 23, 0);
        assert_eq!(leaf(&masked, 7).ecx, 0);
        assert_eq!(leaf(&masked, KVM_FEATURES).eax & 1 << 11, 0);
    }
}
