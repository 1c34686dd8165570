fn main() {
    let args: Vec<String> = std::env::args().collect();
    let paths = rsup::paths::Paths::from_env().unwrap();
    paths.create().unwrap();
    match args[1].as_str() {
        "sample-app" => rsup::load::sample::run().unwrap(),
        file => {
            let loaded = rsup::config::load(file.as_ref()).map_err(|e| eprintln!("{}", e.render(true))).unwrap();
            let env = std::env::vars().collect();
            let options = rsup::daemon::Options { foreground: true, start: Some((loaded.config.apps, env)), ..Default::default() };
            rsup::daemon::run(&paths, options).unwrap();
        }
    }
}
