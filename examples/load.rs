//! The load client by hand, against this machine only:
//! `cargo run --release --example load -- http://127.0.0.1:3001/health -c 20 -n 100000`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Parser;
use rsup::load::{self, Plan};

#[derive(Parser)]
struct Args {
    /// http://127.0.0.1:PORT/PATH
    url: String,
    /// Concurrent clients
    #[arg(short, long, default_value_t = 20)]
    connections: usize,
    /// Stop after so many requests
    #[arg(short = 'n', long)]
    requests: Option<u64>,
    /// Stop after so many seconds
    #[arg(short = 't', long, default_value_t = 60.0)]
    time: f64,
    /// Use connections again
    #[arg(short, long)]
    keep_alive: bool,
    /// Requests per second over all clients
    #[arg(short, long)]
    rate: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The width of the report
    #[arg(long, default_value_t = 80)]
    width: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let mut plan = Plan::for_url(&args.url)?;
    if !plan.target.is_loopback() {
        return Err(format!("{} is not on this machine", plan.target).into());
    }
    plan.connections = args.connections;
    plan.keep_alive = args.keep_alive;
    plan.rate = args.rate;
    plan.max_requests = args.requests;
    plan.max_time = Duration::try_from_secs_f64(args.time)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async { load::start(plan).finish().await });
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
    } else {
        write!(
            out,
            "{}",
            load::render(&report, args.width, out.is_terminal())
        )?;
    }
    Ok(writeln!(out)?)
}
