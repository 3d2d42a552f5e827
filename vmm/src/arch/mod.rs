//! What depends on the processor. The only place that asks for `target_arch`.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("Cove's vmm runs on x86-64 only");

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
