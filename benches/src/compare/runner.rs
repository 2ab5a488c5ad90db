//! Runs both sides of every row in turns: A B A B.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;

use super::driver::Load;
use super::figure::Measured;
use super::fio;
use super::result::{Comparison, Row};
use super::spec::{BackendSpec, FigureSpec, Kind, RowSpec, Spec};
use crate::blk::access::Random;
use crate::cpu::{self, CpuList};
use crate::guest::options::Timing;
use crate::net::meter::{Control, Meter};
use crate::process::{Placeholders, Process, find_program, read_whole, run_to_end};
use crate::testpmd::Testpmd;

/// Runs of the built-in driver or of a command in the whole comparison.
pub fn step_count(spec: &Spec) -> u64 {
    spec.rows.len() as u64 * u64::from(spec.rounds) * 2
}

/// Runs everything; a row that cannot run carries the reason instead of figures.
pub fn run(spec: &Spec, folder: Option<&Path>, bar: &ProgressBar) -> Result<Comparison> {
    let runner = Runner::new(spec, folder)?;
    let stage = Stage::set(spec, &runner.places);
    let mut rows = Vec::new();
    for row in &spec.rows {
        rows.extend(match &stage {
            Ok(_) => runner.row(row, bar),
            Err(error) => failed(row, &format!("{error:#}")),
        });
    }
    let shared = runner.driver_cpus.iter().any(|cpu| runner.backend_cpus.contains(cpu));
    let note = (shared && !spec.shares_cpus).then(|| {
        "Driver and backend share CPUs: this machine has too few for a figure that counts".to_owned()
    });
    Ok(Comparison { title: spec.title.clone(), rounds: spec.rounds, note, rows })
}

/// The figures of a row that could not run.
fn failed(row: &RowSpec, reason: &str) -> Vec<Row> {
    let fail = |&figure| Row::failed(&row.name, &row.peer, figure, format!("{}: {reason}", row.name));
    row.figures.iter().map(fail).collect()
}

/// The CPUs of a specification as far as this machine has them; missing ones are folded onto the others.
fn present(wanted: &[usize], allowed: &[usize]) -> Vec<usize> {
    let fold = |&cpu: &usize| if allowed.contains(&cpu) { cpu } else { allowed[cpu % allowed.len()] };
    let mut cpus: Vec<usize> = wanted.iter().map(fold).collect();
    cpus.dedup();
    cpus
}

struct Runner<'a> {
    spec: &'a Spec,
    folder: PathBuf,
    /// Keeps a folder of our own alive, and removes it in the end.
    _temporary: Option<tempfile::TempDir>,
    places: Placeholders,
    driver_cpus: Vec<usize>,
    backend_cpus: Vec<usize>,
    /// Why a backend cannot run, by name.
    missing: BTreeMap<&'a str, String>,
}

impl<'a> Runner<'a> {
    fn new(spec: &'a Spec, folder: Option<&Path>) -> Result<Self> {
        let temporary = match folder {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("Cannot create a temporary folder")?),
        };
        let folder =
            folder.or(temporary.as_ref().map(tempfile::TempDir::path)).unwrap_or(Path::new(".")).to_owned();
        let mut places = Placeholders::default();
        let file = folder.join("disk.img");
        if let Some(image) = &spec.file {
            write_image(&file, image.size).with_context(|| format!("Cannot write {}", file.display()))?;
            places.set("file", file.display()).set("size", image.size);
        }
        let own = std::env::current_exe().context("Cannot find my own program file")?;
        places.set("bin", own.parent().unwrap_or(Path::new(".")).display());
        places.set("runtime", spec.runtime.as_secs_f64().ceil());
        places.set("warmup", spec.warmup.as_secs_f64().ceil());
        let allowed = cpu::allowed_cpus().context("Cannot ask for the CPUs")?;
        let (driver_cpus, backend_cpus) =
            (present(&spec.driver_cpus, &allowed), present(&spec.backend_cpus, &allowed));
        places.set("cpu", backend_cpus.first().copied().unwrap_or(0));
        places.set("cpus", CpuList(backend_cpus.clone()));
        let missing = missing_programs(spec, &places);
        Ok(Self { spec, folder, _temporary: temporary, places, driver_cpus, backend_cpus, missing })
    }

    /// All figures of one row.
    fn row(&self, row: &RowSpec, bar: &ProgressBar) -> Vec<Row> {
        let (ours, peer) = match self.rounds(row, bar) {
            Ok(sides) => sides,
            Err(error) => return failed(row, &format!("{error:#}")),
        };
        let build = |figure: FigureSpec| {
            let values = |side: &Reports| {
                side.iter().filter_map(|report| report.figure(figure.of)).collect::<Vec<_>>()
            };
            Row::new(&row.name, &row.peer, figure, &values(&ours), &values(&peer))
        };
        row.figures.iter().copied().map(build).collect()
    }

    fn rounds(&self, row: &RowSpec, bar: &ProgressBar) -> Result<(Reports, Reports)> {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        let steps = u64::from(self.spec.rounds) * 2;
        let begin = bar.position();
        for backend in [&row.ours, &row.peer] {
            if let Some(reason) = self.missing.get(backend.as_str()) {
                bar.set_position(begin + steps);
                anyhow::bail!("{reason}");
            }
        }
        let [own, theirs] = row.loads();
        for round in 1..=self.spec.rounds {
            for (name, load, reports) in [(&row.ours, own, &mut ours), (&row.peer, theirs, &mut peer)] {
                bar.set_message(format!("{}, round {round}: {name}", row.name));
                let result = self
                    .measure(&self.spec.backend[name], row, load)
                    .with_context(|| format!("Backend {name}"));
                if result.is_err() {
                    bar.set_position(begin + steps);
                }
                reports.push(result?);
                bar.inc(1);
            }
        }
        Ok((ours, peer))
    }

    /// One run on a fresh process.
    fn measure(&self, backend: &BackendSpec, row: &RowSpec, load: &str) -> Result<Box<dyn Measured>> {
        match backend.kind {
            Kind::Fio => {
                let output = run_to_end(&self.places.words(&backend.command), &self.backend_cpus)?;
                Ok(Box::new(fio::parse(&output)?))
            }
            Kind::Engine => self.engine(backend, row, load, &self.backend_cpus),
            Kind::Submitter => self.engine(backend, row, load, &self.driver_cpus),
            Kind::VhostUser | Kind::Testpmd => self.drive(backend, row.parse(load)?),
        }
    }

    /// An engine does the load by itself.
    fn engine(
        &self,
        backend: &BackendSpec,
        row: &RowSpec,
        load: &str,
        cpus: &[usize],
    ) -> Result<Box<dyn Measured>> {
        let time = |time: Duration| time.as_secs_f64().to_string();
        let mut words = self.places.words(&backend.command);
        words.extend(load.split_whitespace().map(str::to_owned));
        words.extend(["--runtime".to_owned(), time(self.spec.runtime), "--warmup".to_owned()]);
        words.push(time(self.spec.warmup));
        row.driver.engine_report(&run_to_end(&words, cpus)?)
    }

    /// A driver of ours puts the load on a backend.
    fn drive(&self, backend: &BackendSpec, load: Load) -> Result<Box<dyn Measured>> {
        let (mut places, mut sockets) = (self.places.clone(), Vec::new());
        for (name, file) in
            [("socket", "backend.sock"), ("socket2", "backend2.sock"), ("control", "control.sock")]
        {
            let path = self.folder.join(file);
            let _ = std::fs::remove_file(&path);
            places.set(name, path.display());
            sockets.push(path);
        }
        let control = sockets.split_off(2).remove(0);
        sockets.truncate(load.sockets());
        let has_control = backend.command.contains("{control}");
        let mut subject = Subject::start(backend, &places, &self.backend_cpus)?;
        for socket in &sockets {
            subject.process().wait_for_socket(socket)?;
        }
        for command in &backend.ready {
            run_to_end(&places.words(command), &[])?;
        }
        let mut meter = has_control.then(|| Control::new(&control));
        let timing = Timing {
            runtime: self.spec.runtime,
            warmup: self.spec.warmup,
            cpus: Some(CpuList(self.driver_cpus.clone())),
        };
        let report = match &mut subject {
            Subject::Testpmd(testpmd) => load.run(&sockets, timing, Some(testpmd)),
            Subject::Plain(_) => {
                load.run(&sockets, timing, meter.as_mut().map(|meter| meter as &mut dyn Meter))
            }
        };
        let report = report.with_context(|| subject.process().output())?;
        subject.end();
        Ok(report)
    }
}

/// The reports of one side, by round.
type Reports = Vec<Box<dyn Measured>>;

/// A running backend.
enum Subject {
    Plain(Process),
    Testpmd(Testpmd),
}

impl Subject {
    fn start(backend: &BackendSpec, places: &Placeholders, cpus: &[usize]) -> Result<Self> {
        let words = places.words(&backend.command);
        Ok(match backend.kind {
            Kind::Testpmd => Self::Testpmd(Testpmd::start(&words, cpus)?),
            Kind::VhostUser | Kind::Fio | Kind::Engine | Kind::Submitter => {
                Self::Plain(Process::start(&words, cpus)?)
            }
        })
    }

    fn process(&mut self) -> &mut Process {
        match self {
            Self::Plain(process) => process,
            Self::Testpmd(testpmd) => &mut testpmd.process,
        }
    }

    /// testpmd leaves its interfaces behind when it is not asked to end.
    fn end(self) {
        if let Self::Testpmd(testpmd) = self {
            testpmd.quit();
        }
    }
}

/// Runs the commands of `setup` now and those of `teardown` when it is dropped.
struct Stage<'a> {
    teardown: &'a [String],
    places: Placeholders,
}

impl<'a> Stage<'a> {
    fn set(spec: &'a Spec, places: &Placeholders) -> Result<Self> {
        let stage = Self { teardown: &spec.teardown, places: places.clone() };
        // What an interrupted run has left behind.
        stage.clear();
        for command in &spec.setup {
            run_to_end(&places.words(command), &[]).with_context(|| format!("Set-up: {command}"))?;
        }
        Ok(stage)
    }

    fn clear(&self) {
        for command in self.teardown {
            // What is not there cannot be taken away.
            let _ = run_to_end(&self.places.words(command), &[]);
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Backends whose program is not there, with the sentence that says what to install.
fn missing_programs<'a>(spec: &'a Spec, places: &Placeholders) -> BTreeMap<&'a str, String> {
    let mut missing = BTreeMap::new();
    for (name, backend) in &spec.backend {
        let Some(program) = places.words(&backend.command).into_iter().next() else { continue };
        if find_program(&program).is_none() {
            let cure = match &backend.package {
                Some(package) => format!("install the Debian package {package}"),
                None => "build it with: cargo build --release".to_owned(),
            };
            missing.insert(name.as_str(), format!("{program} is not there; {cure}"));
        }
    }
    missing
}

/// Random bytes: no backend can win by recognising zeros, and the file has no holes. Writing them puts them into the page cache.
fn write_image(path: &Path, size: u64) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() == size) {
        return read_whole(path);
    }
    let mut random = Random::new(1);
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    for _ in 0..size / 8 {
        file.write_all(&random.bits().to_le_bytes())?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::spec::Figure;

    fn spec(peer_command: &str) -> Spec {
        let text = format!(
            r#"
            title = "Test"
            rounds = 2
            [backend.ours]
            command = "echo {{}}"
            kind = "fio"
            [backend.peer]
            command = "{peer_command}"
            package = "some-package"
            kind = "fio"
            [[row]]
            name = "row"
            ours = "ours"
            peer = "peer"
            load = "--rw randread"
            figures = [{{ of = "iops", aim = 1.0 }}]
            "#
        );
        Spec::parse(&text).unwrap()
    }

    #[test]
    fn a_missing_peer_is_named_with_its_package_and_costs_no_run() {
        let spec = spec("no-such-daemon {socket}");
        let bar = ProgressBar::hidden();
        let comparison = run(&spec, None, &bar).unwrap();
        let problem = comparison.problems()[0].to_owned();
        assert!(problem.contains("no-such-daemon") && problem.contains("some-package"), "{problem}");
        assert_eq!((comparison.rows[0].figure, comparison.rows[0].ratio), (Figure::Iops, None));
        assert_eq!(bar.position(), step_count(&spec));
    }

    #[test]
    fn a_failing_run_becomes_the_problem_of_its_row() {
        let comparison = run(&spec("false"), None, &ProgressBar::hidden()).unwrap();
        assert!(!comparison.is_complete());
        assert!(comparison.problems()[0].starts_with("row: Backend ours: fio's JSON has no jobs"));
    }

    #[test]
    fn cpus_that_the_machine_lacks_are_folded_onto_those_it_has() {
        assert_eq!(present(&[0, 1], &[0, 1, 2, 3]), [0, 1]);
        assert_eq!(present(&[2, 3], &[0, 1]), [0, 1]);
        assert_eq!(present(&[0, 1], &[4]), [4]);
    }

    #[test]
    fn the_image_has_its_size_and_no_zero_pages() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        write_image(&path, 65536).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 65536);
        assert!(bytes.chunks(512).all(|sector| sector.iter().any(|&byte| byte != 0)));
        write_image(&path, 65536).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
