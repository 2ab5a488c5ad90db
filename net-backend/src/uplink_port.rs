//! The uplink of the process: opened before the sandbox closes, its queues given to the workers afterwards.

use crate::options::{UplinkDevice, UplinkOptions};
use crate::port::Port;
use crate::service::Message;
use crate::uplink::{UplinkQueue, tap, xdp};
use daemon::{Failure, Setup};
use runtime::rings::Reply;
use runtime::worker::WorkerHandle;
use serde_json::{Value, json};
use std::sync::Arc;

/// What is known of an open uplink besides its queues.
#[derive(Clone)]
enum Device {
    Tap(Box<tap::Info>),
    Xdp(Box<xdp::Report>, xdp::Control),
}

/// An uplink whose queues no worker has yet.
pub struct Opened {
    options: UplinkOptions,
    device: Device,
    queues: Vec<Box<dyn UplinkQueue>>,
}

/// An uplink that is being served.
pub struct UplinkPort {
    options: UplinkOptions,
    port: Arc<Port>,
    device: Device,
    queues: usize,
}

impl Opened {
    /// Opens the interface, and has the sandbox leave to it what it needs.
    pub fn open(options: UplinkOptions, workers: usize, setup: &mut Setup) -> Result<Self, Failure> {
        let (device, queues) = match &options.device {
            UplinkDevice::Tap(tap) => {
                let most = u16::try_from(workers).unwrap_or(u16::MAX);
                let queues = tap::open(&tap.into(), most).map_err(Failure::usage)?;
                tap::IOCTLS.iter().for_each(|request| setup.sandbox().allow_ioctl(*request));
                let Some(first) = queues.first() else {
                    return Err(Failure::usage("The uplink has no queue"));
                };
                (
                    Device::Tap(Box::new(first.info().clone())),
                    queues.into_iter().map(boxed).collect::<Vec<_>>(),
                )
            }
            UplinkDevice::Xdp(spec) => {
                let opened = xdp::open(spec, workers).map_err(Failure::usage)?;
                // Changes of the filter are made in maps; all else of bpf(2) stays closed.
                setup.sandbox().allow_commands(libc::SYS_bpf, xdp::MAP_COMMANDS);
                let device = Device::Xdp(Box::new(opened.report), opened.control);
                (device, opened.queues.into_iter().map(boxed).collect())
            }
        };
        if queues.len() > workers {
            return Err(Failure::usage(format!(
                "The uplink has {} queues for {workers} workers: a queue belongs to one worker",
                queues.len()
            ))
            .hint("start as many with --workers, or give the uplink queues=N"));
        }
        Ok(Self { options, device, queues })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// Gives each worker a queue, as far as there are queues; the others reach it through those.
    pub fn start(self, port: Arc<Port>, workers: &[WorkerHandle<Message>]) -> Result<UplinkPort, Failure> {
        let count = self.queues.len();
        let mut queues = self.queues.into_iter();
        for worker in workers {
            let answered = match queues.next() {
                Some(queue) => {
                    let (reply, answer) = Reply::new();
                    let sent = worker.send(Message::Uplink { port: port.clone(), queue, reply });
                    sent.map_err(Failure::runtime)?;
                    answer.recv().map_err(|_| Failure::runtime(worker.gone()))?
                }
                None => {
                    let (reply, answer) = Reply::new();
                    let message =
                        Message::AddPort { device: u32::MAX, port: port.clone(), control: None, reply };
                    worker.send(message).map_err(Failure::runtime)?;
                    answer.recv().map_err(|_| Failure::runtime(worker.gone()))?;
                    Ok(())
                }
            };
            answered.map_err(|error| Failure::runtime(format!("The uplink cannot be served: {error}")))?;
        }
        let uplink = UplinkPort { options: self.options, port, device: self.device, queues: count };
        uplink.log();
        Ok(uplink)
    }
}

fn boxed(queue: impl UplinkQueue + 'static) -> Box<dyn UplinkQueue> {
    Box::new(queue)
}

impl UplinkPort {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// Its port, which has its counters.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Queues in use.
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// What it is, as on the command line.
    pub fn device(&self) -> String {
        match &self.device {
            Device::Tap(info) => format!("tap:{}", info.name),
            Device::Xdp(report, _) => format!("af_xdp:{}", report.interface),
        }
    }

    /// Says in the log what it is, and what could be better.
    fn log(&self) {
        let (uplink, device) = (self.id(), self.device());
        match &self.device {
            Device::Tap(_) => tracing::info!(uplink, device, queues = self.queues, "serving"),
            Device::Xdp(report, _) => {
                let (mode, not_better) = (report.mode, report.not_better.join("; "));
                tracing::info!(uplink, device, queues = self.queues, %mode, not_better, "serving");
                report.warnings.iter().for_each(|warning| tracing::warn!(uplink, "{warning}"));
            }
        }
    }

    /// Changes which frames an AF_XDP uplink takes from the host.
    pub fn set_filter(&self, filter: &xdp::Filter) -> Result<(), Failure> {
        match &self.device {
            Device::Tap(_) => Err(Failure::usage("A TAP interface takes all frames: it has no filter")),
            Device::Xdp(_, control) => {
                let refused = |error| Failure::runtime(format!("The filter cannot be changed: {error}"));
                control.set_filter(filter).map_err(refused)
            }
        }
    }

    /// All about it, for people and programs.
    pub fn report(&self) -> Value {
        let device = match &self.device {
            Device::Tap(info) => json!({
                "interface": info.name,
                "index": info.index,
                "created": info.created,
                "mtu": info.mtu,
                "header": info.header,
                "to_kernel": info.to_kernel.names(),
                "from_kernel": info.from_kernel.names(),
            }),
            Device::Xdp(report, control) => {
                let mut value = serde_json::to_value(report).unwrap_or_default();
                value["filter"] =
                    control.filter().ok().and_then(|filter| serde_json::to_value(filter).ok()).into();
                value["kernel"] = serde_json::to_value(control.statistics()).unwrap_or_default();
                value
            }
        };
        json!({"id": self.id(), "device": self.device(), "queues": self.queues, "details": device})
    }
}
