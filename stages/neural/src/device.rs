//! Which device a stage computes on: the only file that names wgpu.
//!
//! A request is a word of the pipeline file (`auto`, `gpu`, `gpu:1`, `software`, `cpu`); the answer
//! is a burn [`Device`] and a plain sentence about what it is. Hardware adapters are driven through
//! wgpu by their kind; software ones are opened by hand and registered, because burn lists only one
//! adapter of kind CPU and a machine without a GPU needs two of them to test replicas.
//! It does not know what is computed. Errors on a device surface when bytes are read, so every read
//! of the crate goes through [`read`] and [`read_all`].

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use burn::tensor::wgpu::{WgpuSetup, wgpu};
use burn::tensor::{DType, Device, DeviceKind, Tensor, Transaction};
use contract::StageError;
use serde::Serialize;

/// What to install where no software adapter answers.
const INSTALL_SOFTWARE: &str =
    "install Mesa's software Vulkan: `apt-get install mesa-vulkan-drivers libvulkan1`";

/// One adapter as `pipe devices` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterInfo {
    /// What to write as `device = "…"` to get it.
    pub request: String,
    /// Its index among adapters of its sort.
    pub index: usize,
    /// The name its driver gives.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `other`, `software`, or `cpu` for the embedded backend.
    pub kind: String,
    /// `vulkan`, `metal`, `dx12`; `none` for the embedded backend.
    pub api: String,
    /// Driver and its version.
    pub driver: String,
    /// Limits that matter to tensors.
    pub limits: Limits,
    /// Element types it computes with; empty where it could not be opened.
    pub dtypes: Vec<String>,
    /// What kernels are compiled to: `WGSL`, `SPIR-V`, `MSL`, `native`.
    pub shader: String,
}

/// Limits of an adapter that matter to tensors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Bytes of the largest buffer.
    pub buffer_bytes: u64,
    /// Bytes of a buffer that a kernel can see: no tensor may be larger.
    pub binding_bytes: u64,
}

/// A device that is ready for tensors.
#[derive(Clone, Debug)]
pub struct Opened {
    /// burn's handle, without autodiff.
    pub device: Device,
    /// What it is, for a person.
    pub label: String,
    /// Which of its kind on this machine; empty where there is but one.
    pub place: String,
    /// Name and value pairs for the result's provenance.
    pub provenance: Vec<(String, String)>,
}

/// Opens the device behind a request for the `slot`-th place of the machine's pool.
///
/// `auto` is the hardware adapter of that slot, or the embedded CPU backend where there is none;
/// `gpu` and `software` take the adapter of that slot, round robin; `gpu:N` and `software:N` take
/// exactly that one; `cpu` is the embedded backend. Where Slurm has allotted GPUs, slots count among
/// these.
///
/// # Errors
/// If there is no such adapter, if it cannot be opened, or if this build cannot drive it.
pub fn open(request: &str, slot: usize) -> Result<Opened, StageError> {
    let (word, index) = parse(request)?;
    match word {
        "cpu" => Ok(embedded(None)),
        "auto" => {
            let found = adapters(false);
            if found.is_empty() {
                Ok(embedded(Some("no hardware adapter was found")))
            } else {
                found.pick(at_slot(slot, found.len(), &allotted()))
            }
        }
        _ => {
            let found = adapters(word == "software");
            if found.is_empty() {
                return Err(none_found(word));
            }
            let own = if word == "gpu" { allotted() } else { Vec::new() };
            found.pick(index.unwrap_or_else(|| at_slot(slot, found.len(), &own)))
        }
    }
}

/// Every adapter of this machine, the embedded CPU backend last. Opens each one: call it in a
/// process that may crash.
#[must_use]
pub fn list() -> Vec<AdapterInfo> {
    let mut all = Vec::new();
    for software in [false, true] {
        let found = adapters(software);
        all.extend((0..found.len()).map(|index| found.describe(index)));
    }
    all.push(AdapterInfo {
        request: "cpu".into(),
        index: 0,
        name: "burn-flex, the embedded CPU backend".into(),
        kind: "cpu".into(),
        api: "none".into(),
        driver: "burn-flex".into(),
        limits: Limits { buffer_bytes: u64::MAX, binding_bytes: u64::MAX },
        dtypes: dtypes(&Device::flex()),
        shader: "native".into(),
    });
    all
}

/// The elements of a float tensor, row-major.
///
/// # Errors
/// If any operation it depends on failed on the device.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, StageError> {
    tensor.inner().try_into_vec_as::<f32>().map_err(|error| failed(&error))
}

/// The elements of several float tensors with one wait for the device.
///
/// # Errors
/// If any operation they depend on failed on the device.
pub fn read_all(tensors: Vec<Tensor<1>>) -> Result<Vec<Vec<f32>>, StageError> {
    if tensors.is_empty() {
        return Ok(Vec::new());
    }
    let transaction =
        tensors.into_iter().fold(Transaction::default(), |all, tensor| all.register(tensor.inner()));
    let data = transaction.try_execute().map_err(|error| failed(&error))?;
    data.into_iter()
        .map(|data| data.convert::<f32>().try_into_vec::<f32>().map_err(|error| failed(&error)))
        .collect()
}

/// Bytes that one tensor may have on a device that [`open`] gave.
#[must_use]
pub fn binding_bytes(device: &Device) -> u64 {
    let opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let device = device.clone().inner();
    let known = opened.iter().flat_map(HashMap::values).find(|(known, _)| *known == device);
    known.map_or(u64::MAX, |(_, bytes)| *bytes)
}

/// Whether a device is the embedded CPU backend, whose memory is the machine's.
#[must_use]
pub fn is_embedded(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

/// Whether a device computes in an element type.
///
/// # Errors
/// If it does not.
pub fn check_dtype(device: &Device, dtype: DType) -> Result<(), StageError> {
    if device.supports_dtype(dtype) {
        return Ok(());
    }
    let can = dtypes(device).join(", ");
    Err(StageError::new(format!("the device does not compute in {dtype:?}; it has {can}"))
        .hint("choose another `compute_dtype`: `float32` is everywhere"))
}

/// A failure on the device, with what usually helps.
pub fn failed(error: &dyn std::fmt::Display) -> StageError {
    let text = error.to_string();
    let short: String = text.chars().take(400).collect();
    StageError::new(format!("the device failed: {short}"))
        .hint("if it ran out of memory: a smaller `batch_size` or `cutoff`, or an NF4 base, needs less")
}

/// Whether [`open`] understands a request; nothing is opened.
///
/// # Errors
/// If it does not.
pub fn check_request(request: &str) -> Result<(), StageError> {
    parse(request).map(drop)
}

fn parse(request: &str) -> Result<(&str, Option<usize>), StageError> {
    let (word, index) = match request.split_once(':') {
        None => (request, None),
        Some((word, number)) => match number.parse() {
            Ok(index) => (word, Some(index)),
            Err(_) => return Err(unknown(request)),
        },
    };
    match (word, index) {
        ("auto" | "cpu", None) | ("gpu" | "software", _) => Ok((word, index)),
        _ => Err(unknown(request)),
    }
}

/// The GPUs of this machine that Slurm has given to the step, else to the job. wgpu does not know of
/// `CUDA_VISIBLE_DEVICES`, by which CUDA's programs keep to them.
fn allotted() -> Vec<usize> {
    let told = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"].iter().find_map(|name| std::env::var(name).ok());
    numbers(&told.unwrap_or_default())
}

/// A list as Slurm writes it: `0,2-4`; nothing if it is something else.
fn numbers(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(from.parse::<usize>().ok()?..=to.parse::<usize>().ok()?)
    };
    let ranges: Option<Vec<_>> = list.split(',').map(range).collect();
    ranges.into_iter().flatten().flatten().collect()
}

/// The adapter at a slot, round robin: of those allotted, or, where a container shows only these and
/// so counts them from 0, of those there are.
fn at_slot(slot: usize, found: usize, allotted: &[usize]) -> usize {
    if allotted.is_empty() || allotted.iter().any(|&index| index >= found) {
        return slot % found;
    }
    allotted[slot % allotted.len()]
}

fn unknown(request: &str) -> StageError {
    StageError::new(format!("unknown device `{request}`"))
        .hint("one of `auto`, `gpu`, `gpu:0`, `software`, `software:0`, `cpu`")
}

fn none_found(word: &str) -> StageError {
    if word == "software" {
        StageError::new("no software Vulkan adapter answers on this machine").hint(INSTALL_SOFTWARE)
    } else {
        StageError::new("no hardware adapter answers on this machine").hint(
            "install the GPU's Vulkan driver, or take `device = \"auto\"`, which falls back to the CPU backend",
        )
    }
}

fn embedded(why: Option<&str>) -> Opened {
    let label = match why {
        Some(why) => format!("the CPU, through burn's embedded backend (flex): {why}"),
        None => "the CPU, through burn's embedded backend (flex)".into(),
    };
    Opened {
        device: Device::flex(),
        place: String::new(),
        provenance: vec![("backend".into(), "flex".into()), ("adapter".into(), "cpu".into())],
        label,
    }
}

/// Adapters of one sort, best first, of the first graphics API that has any. Those of a kind are in
/// the order of their places on the PCI bus, which is how Slurm and `nvidia-smi` number them.
struct Adapters {
    instance: wgpu::Instance,
    found: Vec<wgpu::Adapter>,
    /// Where each stands among those of its kind as the driver lists them.
    places: Vec<usize>,
    software: bool,
}

fn adapters(software: bool) -> Adapters {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| {
        wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::PRIMARY,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        })
    });
    let all = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let api = [wgpu::Backend::Vulkan, wgpu::Backend::Metal, wgpu::Backend::Dx12]
        .into_iter()
        .find(|api| all.iter().any(|adapter| adapter.get_info().backend == *api));
    let is_cpu = |adapter: &wgpu::Adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu;
    let found = all
        .into_iter()
        .filter(|adapter| Some(adapter.get_info().backend) == api && is_cpu(adapter) == software);
    let mut listed = HashMap::new();
    let mut found: Vec<(wgpu::Adapter, usize)> = found
        .map(|adapter| {
            let next = listed.entry(rank(adapter.get_info().device_type)).or_insert(0);
            *next += 1;
            (adapter, *next - 1)
        })
        .collect();
    // The order of burn's own choice: discrete before integrated before the rest.
    found.sort_by_key(|(adapter, _)| {
        let info = adapter.get_info();
        (rank(info.device_type), info.device_pci_bus_id)
    });
    let (found, places) = found.into_iter().unzip();
    Adapters { instance: instance.clone(), found, places, software }
}

fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn kind_word(kind: wgpu::DeviceType) -> &'static str {
    match kind {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Other => "other",
        wgpu::DeviceType::Cpu => "software",
    }
}

fn shader(api: wgpu::Backend) -> &'static str {
    if cfg!(feature = "vulkan") && api == wgpu::Backend::Vulkan { "SPIR-V" } else { "WGSL" }
}

/// Devices that this process has opened. A runtime can be initialized only once, and a second
/// handle to the same adapter must be the same device, or tensors could not meet.
static OPENED: Mutex<Option<Known>> = Mutex::new(None);

/// (software, index) → the device and the bytes that one of its tensors may have.
type Known = HashMap<(bool, usize), (Device, u64)>;

impl Adapters {
    fn len(&self) -> usize {
        self.found.len()
    }

    fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn word(&self) -> &'static str {
        if self.software { "software" } else { "gpu" }
    }

    fn pick(&self, index: usize) -> Result<Opened, StageError> {
        let Some(adapter) = self.found.get(index) else {
            let names: Vec<String> = self.found.iter().map(|adapter| adapter.get_info().name).collect();
            return Err(StageError::new(format!(
                "there is no adapter `{}:{index}`; this machine has {}: {}",
                self.word(),
                names.len(),
                names.join(", ")
            ))
            .hint("`pipe devices` lists what there is"));
        };
        let info = adapter.get_info();
        let device = self.device(index)?;
        let driver = driver(&info);
        let how = format!("{:?} through wgpu, {}", info.backend, shader(info.backend));
        let bus = Some(info.device_pci_bus_id).filter(|bus| !bus.is_empty());
        Ok(Opened {
            device,
            label: format!("{} ({how})", info.name),
            place: bus.map_or(String::new(), |bus| format!("{}:{index} on PCI {bus}", self.word())),
            provenance: vec![
                ("backend".into(), format!("wgpu/{:?}/{}", info.backend, shader(info.backend))),
                ("adapter".into(), info.name.clone()),
                ("driver".into(), driver),
            ],
        })
    }

    /// The device of an adapter, opened once in a process.
    fn device(&self, index: usize) -> Result<Device, StageError> {
        if self.software && cfg!(feature = "vulkan") {
            return Err(StageError::new(
                "this build compiles kernels to SPIR-V, which crashes inside software Vulkan drivers",
            )
            .hint("build without the cargo feature `vulkan`, or take `device = \"cpu\"`"));
        }
        let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let opened = opened.get_or_insert_with(HashMap::new);
        if let Some((device, _)) = opened.get(&(self.software, index)) {
            return Ok(device.clone());
        }
        let device = if self.software { self.register(index)? } else { self.by_kind(index)? };
        let binding = limits(&self.found[index]).binding_bytes;
        opened.insert((self.software, index), (device.clone(), binding));
        Ok(device)
    }

    /// A hardware adapter, by its place among adapters of its kind (burn's own way, which also sets
    /// up SPIR-V).
    fn by_kind(&self, index: usize) -> Result<Device, StageError> {
        let kind = self.found[index].get_info().device_type;
        let place = self.places[index];
        let selector = match kind {
            wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(place),
            wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(place),
            wgpu::DeviceType::VirtualGpu => DeviceKind::VirtualGpu(place),
            wgpu::DeviceType::Other | wgpu::DeviceType::Cpu => DeviceKind::DefaultDevice,
        };
        Device::wgpu_options().device_kind(selector).init().map_err(|error| self.cannot_open(index, &error))
    }

    /// A software adapter, opened here and handed to burn.
    fn register(&self, index: usize) -> Result<Device, StageError> {
        let adapter = self.found[index].clone();
        let description = wgpu::DeviceDescriptor {
            required_features: adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            // SAFETY: the same features that burn's own request enables; passthrough shaders are
            // produced by cubecl only.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let (device, queue) = cubecl::future::block_on(adapter.request_device(&description))
            .map_err(|error| self.cannot_open(index, &error))?;
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance: self.instance.clone(), adapter, device, queue, backend };
        Device::wgpu_options().setup(setup).init().map_err(|error| self.cannot_open(index, &error))
    }

    fn cannot_open(&self, index: usize, error: &dyn std::fmt::Display) -> StageError {
        let name = self.found[index].get_info().name;
        StageError::new(format!("cannot open `{}:{index}` ({name}): {error}", self.word()))
            .hint("`device = \"cpu\"` computes without it")
    }

    fn describe(&self, index: usize) -> AdapterInfo {
        let info = self.found[index].get_info();
        AdapterInfo {
            request: format!("{}:{index}", self.word()),
            index,
            name: info.name.clone(),
            kind: kind_word(info.device_type).into(),
            api: format!("{:?}", info.backend).to_lowercase(),
            driver: driver(&info),
            limits: limits(&self.found[index]),
            dtypes: self.device(index).map(|device| dtypes(&device)).unwrap_or_default(),
            shader: shader(info.backend).into(),
        }
    }
}

fn driver(info: &wgpu::AdapterInfo) -> String {
    format!("{} {}", info.driver, info.driver_info).trim().to_owned()
}

fn limits(adapter: &wgpu::Adapter) -> Limits {
    let limits = adapter.limits();
    Limits {
        buffer_bytes: limits.max_buffer_size,
        binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
    }
}

fn dtypes(device: &Device) -> Vec<String> {
    [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U32, DType::U8]
        .into_iter()
        .filter(|dtype| device.supports_dtype(*dtype))
        .map(|dtype| format!("{dtype:?}").to_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_backend_is_always_there() {
        let opened = open("cpu", 0).expect("cpu needs no driver");
        let sum = Tensor::<1>::ones([3], &opened.device).sum();
        assert_eq!(read(sum).expect("flex reads"), vec![3.0]);
    }

    #[test]
    fn an_unknown_request_is_refused_with_the_choices() {
        for request in ["cuda", "gpu:x", "cpu:1", "auto:0", ""] {
            let error = open(request, 0).expect_err(request);
            assert!(error.message.contains(request), "{error}");
            assert!(error.hint.expect("a hint").contains("`software`"));
        }
    }

    #[test]
    fn slots_count_among_the_gpus_that_slurm_has_allotted() {
        assert_eq!(numbers("0,2-4"), [0, 2, 3, 4]);
        assert_eq!((numbers(""), numbers("0,gpu")), (vec![], vec![]));
        let chosen = |found, allotted: &[usize]| [0, 1, 2].map(|slot| at_slot(slot, found, allotted));
        assert_eq!(chosen(4, &[2, 3]), [2, 3, 2], "of four that all are seen");
        assert_eq!(chosen(2, &[2, 3]), [0, 1, 0], "only one's own are seen");
        assert_eq!(chosen(3, &[]), [0, 1, 2]);
    }

    #[test]
    fn an_adapter_index_beyond_the_last_is_refused() {
        for word in ["gpu", "software"] {
            let error = open(&format!("{word}:99"), 0).expect_err("nobody has a hundred adapters");
            assert!(error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn the_list_ends_with_the_embedded_backend() {
        let all = list();
        let last = all.last().expect("never empty");
        assert_eq!(last.request, "cpu");
        assert!(last.dtypes.contains(&"f32".to_owned()));
    }
}
