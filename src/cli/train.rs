//! `qlora-train MODEL DATA`: the whole way from two paths to an adapter.
//!
//! Everything that can be refused is refused before a weight is read: the data is tokenized and
//! told, the memory planned and held against the budget. Then the model is loaded, trained
//! ([`qlora_train::train::run`]), and the results are written, each file whole or not at all.

use std::path::PathBuf;
use std::sync::atomic::AtomicI32;

use clap::Args;
use qlora_train::checkpoint::adapter::AdapterConfig;
use qlora_train::checkpoint::atomic;
use qlora_train::data::{MicroBatch, Row};
use qlora_train::device::cpu::SCRATCH;
use qlora_train::error::{Error, Place};
use qlora_train::methods::lora::{self, Attached};
use qlora_train::model::load::load;
use qlora_train::model::tokens::Limits;
use qlora_train::model::workspace::Purpose;
use qlora_train::train::checkpoints::{self, Found};
use qlora_train::train::export::{Effect, Form, verify, write_adapter};
use qlora_train::train::metrics::Summary;
use qlora_train::train::plan::{Plan, plan};
use qlora_train::train::run::{Routine, Run};
use qlora_train::train::session::Session;
use qlora_train::train::steps::Steps;

use super::corpus::Corpus;
use super::flags::{BatchFlags, TrainFlags};
use super::identity::Identity;
use super::job::{Source, first_that_fits, job, tell_split};
use super::machine::{Machine, available_memory};
use super::opened::{Opened, open};
use super::progress::Progress;
use super::resolved::{self, Resolved};
use super::run_folder::{RunFolder, SETTINGS_FILE};
use super::table::{self, grouped, mib};
use super::{card, copies, disk, output, profile, signals};

/// Flags of a training run.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    pub model: Option<String>,
    /// Records to learn from: .jsonl, .json or .txt files
    #[arg(required_unless_present = "config")]
    pub data: Vec<PathBuf>,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// All flags of training
    #[command(flatten)]
    pub flags: TrainFlags,
}

/// Trains, and says what came of it.
///
/// # Errors
/// Whatever is wrong with the inputs; too little memory; a run that diverged or was stopped.
pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let (flags, stop) = (&args.flags, signals::watch()?);
    flags.output.profile.as_deref().map_or(Ok(()), profile::check)?;
    let machine = flags.device.machine()?;
    let opened = open(named_model(args)?)?;
    let source = flags.method.source()?;
    source.check(&opened, flags.method.foreign)?;
    let mut folder = RunFolder::take(&flags.output.output_dir, flags.output.resume.as_ref())?;
    machine.tell();
    let corpus = Corpus::load(args, &opened, folder.date())?;
    let Fitted { args, steps, limits, plan } =
        fit(args, &corpus, &opened, &source, &machine, &folder)?;
    tell_plan(&plan)?;
    disk::check(&args.flags, &plan, steps.total())?;
    signals::check(&stop)?;
    let total = steps.total();
    let task = Task { args: &args, machine, opened, source, corpus: &corpus, limits, plan, total };
    task.train(steps, &mut folder, &stop)
}

/// A run whose micro-batches are as large as they may be.
struct Fitted<'a> {
    args: TrainArgs,
    steps: Steps<'a>,
    limits: Limits,
    plan: Plan,
}

/// Plans the micro-batches that were asked for, and smaller ones as long as those do not fit.
fn fit<'a>(
    args: &TrainArgs,
    corpus: &'a Corpus,
    opened: &Opened,
    source: &Source,
    machine: &Machine,
    folder: &RunFolder,
) -> Result<Fitted<'a>, Error> {
    let (method, host) = (source.method(), available_memory());
    let (config, weights) = (&opened.config, Some(&opened.weights));
    let with = |batch: BatchFlags| -> Result<Fitted<'a>, Error> {
        let mut args = args.clone();
        args.flags.batch = batch;
        let (flags, batching) = (&args.flags, args.flags.batch.batching(corpus.seq_len()));
        let steps = Steps::new(&corpus.train.examples, batching, flags.batch.length());
        let limits = corpus.limits(&steps);
        let most = (limits, steps.window_size());
        let job = job(flags, config, weights, &method, most, (machine, host));
        let plan = plan(&job, machine.budget)?;
        Ok(Fitted { args, steps, limits, plan })
    };
    let fitted = first_that_fits(args.flags.batch.splits(folder.batch()), with, |f| &f.plan)?;
    tell_split(&args.flags.batch, &fitted.args.flags.batch);
    Ok(fitted)
}

/// A run that fits: what is told, planned and checked.
struct Task<'a> {
    args: &'a TrainArgs,
    machine: Machine,
    opened: Opened,
    source: Source,
    corpus: &'a Corpus,
    limits: Limits,
    plan: Plan,
    /// Optimizer steps.
    total: u64,
}

impl Task<'_> {
    fn train(&self, steps: Steps, folder: &mut RunFolder, stop: &AtomicI32) -> anyhow::Result<()> {
        let (flags, total) = (&self.args.flags, self.total);
        let resolved = self.resolved(total);
        let settings = resolved::numbers(self.args, &resolved);
        let identity = Identity::of(&self.opened, &self.corpus.train.examples, &settings)?;
        let told = resolved::told(self.args, &resolved, total);
        let tokenizer = self.corpus.reading.tokenizer.as_ref();
        let provenance = identity.provenance(&self.opened, tokenizer, told)?;
        let identity = identity.to_string();
        let found = find_checkpoint(flags, folder, &identity, total)?;
        let (session, config) = self.load()?;
        let form = Form { config, provenance };
        let moments = flags.optimizer.optimizer.moments();
        let optimizer = session.optimizer(flags.optimizer.settings(), moments, self.plan.paging)?;
        signals::check(stop)?;
        let text = resolved::file(self.args, &resolved);
        atomic::write_bytes(&folder.file(SETTINGS_FILE), text)?;
        folder.file("metrics.jsonl");
        let run = Run {
            session,
            optimizer,
            steps,
            eval: self.corpus.eval.as_ref().map_or(&[], |eval| &eval.examples),
            routine: self.routine(total, identity),
            adapter: form.clone(),
            output: &flags.output.output_dir,
            files: &self.args.data,
        };
        let (device, profile) = (run.session.device.clone(), &flags.output.profile);
        if profile.is_some() {
            device.start_profile()?;
        }
        let done = watched(run, found.as_ref(), total, stop);
        // A timeline that cannot be written must not cost what was learned.
        if let Some(Err(error)) = profile.as_ref().map(|path| profile::finish(&device, path)) {
            output::warn(error);
        }
        let (mut session, summary) = done?;
        write_results(folder, &self.opened, &session, &form, &summary)?;
        self.verify(folder, &mut session)?;
        tell_summary(&summary, &self.plan, folder)
    }

    /// Reads the adapter back as everybody does, and tells what it does.
    fn verify(&self, folder: &RunFolder, session: &mut Session) -> Result<(), Error> {
        let Some(example) = self.corpus.shortest(self.limits) else { return Ok(()) };
        let micro = MicroBatch::new(std::slice::from_ref(example), &[Row { examples: vec![0] }]);
        let effect = verify(folder.path(), session, &micro)?;
        let place = example.origin.place(&self.args.data);
        let Effect { without, with, changes, is_zero } = effect;
        if changes {
            output::note(format_args!(
                "adapter read back and verified; loss of {place}: {without:.4} without it, {with:.4} with it"
            ));
            return Ok(());
        }
        if !is_zero {
            output::warn(format_args!("the adapter is too small to change the loss of {place}"));
            return Ok(());
        }
        // A schedule that starts at 0 leaves the adapter of a single step as it was.
        let schedule = self.args.flags.optimizer.schedule(self.total);
        if (1..=self.total).all(|step| schedule.rate(step) == 0.0) {
            output::warn("the learning rate of every step was 0: the adapter changes nothing");
            return Ok(());
        }
        let what = "the adapter changes nothing: no update has reached the model's outputs; see \
                    `qlora-train check`";
        Err(Error::input(folder.path(), what))
    }

    fn resolved(&self, total: u64) -> Resolved<'_> {
        Resolved {
            seq_len: self.corpus.seq_len(),
            warmup: self.args.flags.optimizer.schedule(total).warmup,
            date: self.corpus.reading.date,
            base: self.opened.base(&self.args.flags.base),
            source: &self.source,
        }
    }

    fn routine(&self, total: u64, identity: String) -> Routine {
        let flags = &self.args.flags;
        Routine {
            schedule: flags.optimizer.schedule(total),
            seed: flags.batch.seed,
            eval_steps: flags.output.eval_steps.map(|steps| steps as u64),
            seq_len: self.corpus.seq_len(),
            save_steps: flags.output.save_steps.map(|steps| steps as u64),
            keep_checkpoints: flags.output.keep_checkpoints,
            on_save_error: flags.output.on_save_error.meaning(),
            max_skipped: flags.output.max_skipped_steps as u64,
            identity,
        }
    }

    /// Loads the model, attaches what is trained, and takes the memory that was planned.
    fn load(&self) -> Result<(Session, AdapterConfig), Error> {
        let (opened, flags) = (&self.opened, &self.args.flags);
        if opened.is_four_bit() {
            output::note("the model's 4-bit weights are used as they are stored");
        }
        let device = self.machine.open()?;
        let (config, weights) = (opened.config.clone(), Some(&opened.weights));
        let mut decoder =
            load(&device, config, weights, flags.base.quantization(), self.plan.residence)?;
        let Attached { index, config } = self.source.method().attach(&mut decoder)?;
        let scratch = self.plan.report.labels.get(SCRATCH).map_or(0, |usage| usage.peak);
        device.reserve_scratch(scratch as usize)?;
        let purpose = Purpose::Training(self.plan.keep);
        let mut session = Session::new(device.clone(), decoder, index, self.limits, purpose)?;
        match &self.source {
            Source::New(_) => lora::initialize(&device, &mut session.params, flags.batch.seed),
            Source::From { adapter, .. } => lora::restore(&device, &mut session.params, adapter),
        }
        let base_model = Some(base_name(opened));
        Ok((session, AdapterConfig { base_model, ..config }))
    }
}

fn named_model(args: &TrainArgs) -> Result<&str, Error> {
    let missing = |name: &str| Error::input(Place::flag(name), "missing: give a model and data");
    if args.data.is_empty() && args.model.is_some() {
        return Err(missing("DATA"));
    }
    args.model.as_deref().ok_or_else(|| missing("MODEL"))
}

fn tell_plan(plan: &Plan) -> Result<(), Error> {
    output::note(table::plan(plan));
    if plan.fits() {
        return Ok(());
    }
    if plan.host > plan.host_budget {
        let what = format!(
            "{} MiB of host memory are needed beside the GPU, {} MiB are free: lower \
             --batch-size, --grad-accum or --seq-len, or allow the GPU more",
            mib(plan.host),
            mib(plan.host_budget)
        );
        return Err(Error::input(Place::flag("--memory-budget"), what));
    }
    let what = format!(
        "{} MiB are needed, {} MiB are allowed: lower --batch-size, --seq-len or --lora-r, keep \
         the moments in eight bits with --optimizer adamw-8bit, or allow more",
        mib(plan.report.total.peak),
        mib(plan.budget)
    );
    Err(Error::input(Place::flag("--memory-budget"), what))
}

fn find_checkpoint(
    flags: &TrainFlags,
    folder: &RunFolder,
    identity: &str,
    total: u64,
) -> Result<Option<Found>, Error> {
    let Some(resume) = &flags.output.resume else {
        return Ok(None);
    };
    checkpoints::clear_unfinished(folder.path())?;
    let (found, passed_over) = checkpoints::find(folder.path(), resume, identity)?;
    passed_over.iter().for_each(output::warn);
    match &found {
        Some(found) => {
            output::note(format_args!(
                "going on after step {} of {total} from {}",
                found.state.global_step,
                found.folder.display()
            ));
            let (had, warmup) = (found.state.total_steps, flags.optimizer.schedule(total).warmup);
            if (had, found.state.warmup_steps) != (total, warmup) {
                output::note(format_args!(
                    "the run has {total} steps now and had {had}: the learning rate follows, \
                     with a warm-up of {warmup} steps"
                ));
            }
        }
        None => {
            folder.refuse_other_runs(identity)?;
            output::note("no checkpoint to go on from: starting at step 1");
        }
    }
    Ok(found)
}

/// The base model as `peft` will look for it: a name of the hub, or a folder.
fn base_name(opened: &Opened) -> String {
    match std::path::Path::new(&opened.name).is_file() {
        true => opened.files.folder.display().to_string(),
        false => opened.name.clone(),
    }
}

/// Trains under the eyes of the user.
fn watched(
    run: Run,
    found: Option<&Found>,
    total: u64,
    stop: &AtomicI32,
) -> Result<(Session, Summary), Error> {
    let done = found.map_or(0, |found| found.state.global_step);
    output::note(format_args!(
        "training {} numbers in {} steps",
        grouped(run.session.params.index().len()),
        grouped(total - done.min(total))
    ));
    let mut progress = Progress::new(total, done);
    let result = run.train(found, &mut progress, stop);
    progress.finish();
    if let Err(Error::Interrupted { .. }) = result {
        output::note("a checkpoint was written: go on with the same command and --resume auto");
    }
    result
}

fn write_results(
    folder: &mut RunFolder,
    opened: &Opened,
    session: &Session,
    form: &Form,
    summary: &Summary,
) -> Result<(), Error> {
    copies::tokenizer(&opened.files, |name| folder.file(name))?;
    atomic::write_bytes(&folder.file("README.md"), card::card(&form.config, summary))?;
    write_adapter(folder.path(), &session.device, &session.params, form)?;
    folder.keep();
    Ok(())
}

fn tell_summary(summary: &Summary, plan: &Plan, folder: &RunFolder) -> anyhow::Result<()> {
    let Summary { steps, first_loss, last_loss, train_seconds, .. } = summary;
    output::note(format_args!(
        "peak memory {} MiB, planned {} MiB",
        mib(summary.peak_memory_bytes),
        mib(plan.report.total.peak)
    ));
    if let (Some(taken), Some(planned)) =
        (summary.driver_memory_bytes, summary.driver_memory_planned_bytes)
    {
        output::note(format_args!("driver {} MiB, planned {} MiB", mib(taken), mib(planned)));
    }
    if let (Some(bytes), Some(waited)) = (summary.weight_bytes_read, summary.weight_wait_seconds) {
        output::note(format_args!(
            "weights read {} MiB, waited for {} of {}",
            mib(bytes),
            table::duration(waited),
            table::duration(*train_seconds)
        ));
    }
    output::result(format_args!(
        "{}: loss {first_loss:.4} -> {last_loss:.4} in {steps} steps, {}, {} tokens/s",
        folder.path().display(),
        table::duration(*train_seconds),
        grouped(summary.tokens_per_second as u64)
    ))
}
