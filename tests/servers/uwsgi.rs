//! uWSGI, which takes every inherited socket for one of its own protocol, whatever it was told to serve.

use crate::common::{Home, apps, http};
use crate::lives;

const APP: &str = "import os\n\
     def application(environ, start):\n    \
         body = b'{\"pid\": %d}\\n' % os.getpid()\n    \
         start('200 OK', [('Content-Length', str(len(body)))])\n    \
         return [body]\n";

#[test]
fn by_http() {
    let Some(uwsgi) = apps::uwsgi() else { return };
    for lines in ["", "processes"] {
        let home = Home::new();
        let port = home.port();
        home.write("app.py", APP);
        let address = format!("127.0.0.1:{port}");
        let mut words = vec![
            uwsgi,
            "--http-socket",
            &address,
            "--wsgi-file",
            "app.py",
            "--die-on-term",
            "--need-app",
        ];
        if lines == "processes" {
            words.extend(["--master", "--processes", "2"]);
        }
        let command = apps::toml_command(&words);
        home.config(&format!(
            "[app.web]\n{command}\ninstances = 2\nlisten = \"{address}\"\nkill_timeout = \"20s\"\n"
        ));
        lives(&home, port);
        assert!(http::get(http::local(port), "/").expect("an answer").pid() > 1);
        let shown = home.ok(&["describe", "web"]).out;
        assert!(shown.contains("by takeover"), "{shown}");
    }
}
